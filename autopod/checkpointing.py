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
    checkpoint.add_argument(
        "--whole-every",
        metavar="N",
        type=_count,
        help="with --keep: one in N is whole; those between have only what is not in it, and need "
        "it, which stays for them (default: 1)",
    )
    checkpoint.add_argument("--pin", action="store_true", help="with --keep: it stays for good")
    commandline.add_tcp(checkpoint)
    commandline.add_recipient(checkpoint)
    commandline.add_since(checkpoint, new=True)


def _add_checkpoints(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    listing = verbs.add_parser("checkpoints", help="show the kept checkpoints of a pod")
    listing.set_defaults(run=_checkpoints, usage=listing.error)
    listing.add_argument("pod", metavar="POD", type=commandline.pod)
    what = listing.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="as an array of objects")
    what.add_argument("--pin", metavar="NUMBER", type=_count, help="let that one stay for good")
    what.add_argument("--unpin", metavar="NUMBER", type=_count, help="let it go in its time")
    what.add_argument(
        "--keep",
        metavar="N",
        type=_count,
        help="delete now what is older than the N newest; copy to the store what is missing there",
    )
    what.add_argument(
        "--get",
        metavar="NUMBER",
        type=_count,
        help="with --from: keep that one on this host, too, and print its file",
    )
    _add_from(listing)


def _add_from(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="where",
        metavar="WHERE",
        type=_store,
        help="those of an object store: its URL (s3://BUCKET/PREFIX, file:///DIRECTORY), or "
        "'store' for the configured one (archives.url)",
    )


def _add_restart(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    restart = verbs.add_parser("restart", help="let a pod go on from such a file")
    restart.set_defaults(run=_restart, usage=restart.error)
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
    _add_from(restart)
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
    commandline.add_since(restart)
    commandline.add_lazy(restart)


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


def _store(text: str) -> str:
    from autopod import objects, stored

    try:
        return text if text == stored.CONFIGURED else objects.check_url(text)
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

    _check_usage(arguments)
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
            whole_every=arguments.whole_every or 1,
        )
    else:
        commands.checkpoint(
            places,
            arguments.pod,
            arguments.file,
            leave_running=arguments.leave_running,
            tcp=arguments.tcp,
            recipients=arguments.recipient,
            since=arguments.since,
        )
    if new_key:
        _say(f"signed with this host's new key pair, {new_key[:16]}…, in {places.keys()}")
    return 0


def _check_usage(arguments: argparse.Namespace) -> None:
    kept = arguments.every or arguments.pin or arguments.end or arguments.whole_every
    if arguments.keep is None and kept:
        arguments.usage("--every, --whole-every, --pin and --end go with --keep")
    if arguments.keep and arguments.since:
        arguments.usage("--since is for a file: with --keep use --whole-every N")
    if arguments.end and (arguments.every or arguments.leave_running):
        arguments.usage("--end: not with --every or --leave-running")
    if arguments.every and arguments.pin:
        arguments.usage("--pin would keep them all: not with --every")


def _repeat(arguments: argparse.Namespace) -> NoReturn:
    from autopod import periodic

    more = ["--keep", str(arguments.keep)]
    if arguments.whole_every:
        more += ["--whole-every", str(arguments.whole_every)]
    if arguments.tcp:
        more += ["--tcp", arguments.tcp]
    for recipient in arguments.recipient:
        more += ["--recipient", str(recipient.absolute())]
    periodic.repeat(arguments.pod, arguments.every, more)


def _checkpoints(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import checkpoints, overview, periodic

    pod, number, where = arguments.pod, arguments.pin or arguments.unpin, arguments.where
    if arguments.get and not where:
        arguments.usage("--get goes with --from")
    if arguments.keep and where:
        arguments.usage("--keep is for this host and the configured store: not with --from")
    if arguments.get:
        _get(places, pod, where, arguments.get)
    elif number:
        if where:
            _pin_stored(places, pod, where, number, pinned=bool(arguments.pin))
        else:
            checkpoints.pin(places, pod, number, pinned=bool(arguments.pin))
        _say(f"pod {pod}: checkpoint {number} is {'pinned' if arguments.pin else 'not pinned'}")
    elif arguments.keep:
        periodic.collect(places, pod, arguments.keep)
    else:
        rows = periodic.stored_rows(places, pod, where) if where else periodic.rows(places, pod)
        if not rows and not checkpoints.known(places, pod):  # a pod may go, and they stay
            overview.check_known(places, pod)
        as_json = arguments.json
        text = overview.as_json(rows) if as_json else overview.columns(periodic.table(rows))
        sys.stdout.write(text)
    return 0


def _get(places: Places, pod: str, where: str, number: int) -> None:
    from autopod import stored
    from ckpt import progress

    objects = stored.needed(places, where)
    one = stored.numbered(objects, pod, number)
    _say(f"{stored.fetch(places, pod, objects, one, progress.for_terminal())}")


def _pin_stored(places: Places, pod: str, where: str, number: int, *, pinned: bool) -> None:
    from autopod import stored

    stored.pin(stored.needed(places, where), pod, number, pinned=pinned)


def _restart(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import commands

    pod, replace, file = arguments.pod, arguments.replace, arguments.file
    if arguments.where and not arguments.at:
        arguments.usage("--from goes with --at")
    with ExitStack() as held:
        if arguments.at:
            file = _kept(places, arguments, held)
            if file is None:
                return 1
            replace = True
        commands.restart(
            places,
            pod,
            file,
            lowers=arguments.lower,
            replace=replace,
            tcp=arguments.tcp,
            identity=arguments.identity,
            since=arguments.since,
            lazy=arguments.lazy,
            rate=arguments.lazy_rate,
        )
    return 0


def _kept(places: Places, arguments: argparse.Namespace, held: ExitStack) -> Path | None:
    """Return the checkpoint that --at means, which stays while it is *held*.

    None: it cannot be had from the store, and that was told.
    """
    from autopod import checkpoints, stored

    pod = arguments.pod
    if arguments.where:
        got = stored.fetch_apart(places, pod, arguments.where, arguments.at)
        if got is None:
            return None
        [one] = checkpoints.among([got.name])
        file = held.enter_context(checkpoints.reading(places, pod, one))
    else:
        one, file = held.enter_context(checkpoints.using(places, pod, arguments.at))
    _say(f"pod {pod}: from checkpoint {one.number} of {checkpoints.spelled(one)}")
    return file


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
