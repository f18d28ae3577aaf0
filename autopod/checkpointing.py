"""The verbs `checkpoint`, `checkpoints` and `restart` of the `autopod` command."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from launcher import commandline
from launcher.places import Places

if TYPE_CHECKING:
    from datetime import datetime


def add_verbs(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    """Add them to the command's *verbs*."""
    _add_checkpoint(verbs)
    _add_checkpoints(verbs)
    _add_restart(verbs)


def _add_checkpoint(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    checkpoint = verbs.add_parser("checkpoint", help="write a pod to a signed file, and end it")
    checkpoint.set_defaults(run=_checkpoint, usage=checkpoint.error)
    checkpoint.add_argument("pod", metavar="POD", type=commandline.pod)
    where = checkpoint.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", dest="file", metavar="FILE", type=Path)
    where.add_argument(
        "--keep",
        metavar="N",
        type=_count,
        help="among the pod's kept checkpoints, of which the N newest stay; the pod goes on",
    )
    checkpoint.add_argument("--end", action="store_true", help="with --keep: the pod ends by it")
    checkpoint.add_argument(
        "--leave-running", action="store_true", help="let the pod go on afterwards"
    )
    checkpoint.add_argument(
        "--every",
        metavar="TIME",
        type=_span,
        help="with --keep: now and then every 90s, 10m, 2h, 1d, until this command is ended",
    )
    checkpoint.add_argument("--pin", action="store_true", help="with --keep: it stays for good")
    commandline.add_tcp(checkpoint)
    commandline.add_recipient(checkpoint)


def _add_checkpoints(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    listing = verbs.add_parser("checkpoints", help="show the kept checkpoints of a pod")
    listing.set_defaults(run=_checkpoints)
    listing.add_argument("pod", metavar="POD", type=commandline.pod)
    what = listing.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="as an array of objects")
    what.add_argument("--pin", metavar="NUMBER", type=_count, help="let that one stay for good")
    what.add_argument("--unpin", metavar="NUMBER", type=_count, help="let it go in its time")
    what.add_argument(
        "--keep", metavar="N", type=_count, help="delete now what is older than the N newest"
    )


def _add_restart(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    restart = verbs.add_parser("restart", help="let a pod go on from such a file")
    restart.set_defaults(run=_restart)
    restart.add_argument("pod", metavar="POD", type=commandline.pod)
    source = restart.add_mutually_exclusive_group(required=True)
    source.add_argument("-i", dest="file", metavar="FILE", type=Path)
    source.add_argument(
        "--at",
        metavar="TIME",
        type=moment,
        help="the newest kept checkpoint of that time or before, files and processes: "
        "2026-11-27T09:00:00Z, '2026-11-27 10:00', 10:00, or 2h for two hours ago; "
        "other files of the pod are moved aside",
    )
    restart.add_argument(
        "--base",
        "--lower",
        dest="lower",
        metavar="DIR",
        type=Path,
        action="append",
        help="a base directory of the pod, told by what is in it (default: as configured, or as "
        "archived)",
    )
    restart.add_argument(
        "--replace", action="store_true", help="move other files of the pod on this host aside"
    )
    commandline.add_tcp(restart)
    commandline.add_identity(restart)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _span(text: str) -> int:
    from autopod import retention

    try:
        return retention.parse_span(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def moment(text: str) -> "datetime":
    """Return the moment that *text* means: a `type` for arguments."""
    from datetime import UTC, datetime

    from autopod import retention

    try:  # local time is made out by the rules of its own date: summer, or winter
        return retention.parse_moment(text, datetime.now(UTC).astimezone()).astimezone()
    except (ValueError, OverflowError) as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _checkpoint(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import commands
    from ckpt.archive import keys

    if arguments.keep is None and (arguments.every or arguments.pin or arguments.end):
        arguments.usage("--every, --pin and --end go with --keep")
    if arguments.end and (arguments.every or arguments.leave_running):
        arguments.usage("--end: not with --every or --leave-running")
    if arguments.every and arguments.pin:
        arguments.usage("--pin would keep them all: not with --every")
    new_key = None
    if not (places.keys() / keys.PRIVATE).exists():
        new_key, _ = keys.ensure(places.keys(), places.trust())
    if arguments.every:
        _repeat(arguments)
    elif arguments.keep:
        from autopod import periodic

        periodic.take(
            places,
            arguments.pod,
            arguments.keep,
            pin=arguments.pin,
            end=arguments.end,
            tcp=arguments.tcp,
            recipients=arguments.recipient,
        )
    else:
        commands.checkpoint(
            places,
            arguments.pod,
            arguments.file,
            leave_running=arguments.leave_running,
            tcp=arguments.tcp,
            recipients=arguments.recipient,
        )
    if new_key:
        _say(f"signed with this host's new key pair, {new_key[:16]}…, in {places.keys()}")
    return 0


def _repeat(arguments: argparse.Namespace) -> NoReturn:
    from autopod import periodic

    more = ["--keep", str(arguments.keep)]
    if arguments.tcp:
        more += ["--tcp", arguments.tcp]
    for recipient in arguments.recipient:
        more += ["--recipient", str(recipient.absolute())]
    periodic.repeat(arguments.pod, arguments.every, more)


def _checkpoints(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import checkpoints, overview, periodic

    pod, number = arguments.pod, arguments.pin or arguments.unpin
    if number:
        checkpoints.pin(places, pod, number, pinned=bool(arguments.pin))
        _say(f"pod {pod}: checkpoint {number} is {'pinned' if arguments.pin else 'not pinned'}")
    elif arguments.keep:
        periodic.collect(places, pod, arguments.keep)
    else:
        rows = periodic.rows(places, pod)
        as_json = arguments.json
        text = overview.as_json(rows) if as_json else overview.columns(periodic.table(rows))
        sys.stdout.write(text)
    return 0


def _restart(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import commands

    pod, replace, file = arguments.pod, arguments.replace, arguments.file
    with ExitStack() as held:
        if arguments.at:
            from autopod import checkpoints

            replace = True
            one, file = held.enter_context(checkpoints.using(places, pod, arguments.at))
            _say(f"pod {pod}: from checkpoint {one.number} of {checkpoints.spelled(one)}")
        commands.restart(
            places,
            pod,
            file,
            lowers=arguments.lower,
            replace=replace,
            tcp=arguments.tcp,
            identity=arguments.identity,
        )
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
