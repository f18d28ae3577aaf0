"""The `autopod` command: the article's verbs. Arguments in, lines out.

Modules are imported by the command that needs them: a restart must not pay for what it does not
use. Every command that changes a pod holds its lock.
"""

import argparse
from pathlib import Path
from typing import NoReturn

from autopod import checkpointing, overlaying
from autopod.fleet import cli as fleet
from autopod.status import cli as service
from launcher import commandline
from launcher.places import Places

_DESCRIPTION = "Isolate services in pods, checkpoint them, and restart them under another kernel."
_EPILOG = """\
example:
  mount -o bind /pod /autopod/exim/root
  autopod add exim
  autopod addproc exim /usr/sbin/exim4 -bd -q30m
  autopod checkpoint exim -o /exim.pod
  autopod restart exim -i /exim.pod
"""


def command() -> NoReturn:
    """Be the command."""
    commandline.be(main)


def main(argv: list[str] | None = None) -> int:
    """Run the command line *argv*, or that of the process; return the exit status."""
    return commandline.run("autopod", _parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = commandline.Parser(
        prog="autopod",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show a traceback when something fails"
    )
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add = verbs.add_parser("add", help="make a pod: mount its root, make its network identity")
    add.set_defaults(run=_add)
    _add_pod(add)
    add.add_argument(
        "--base",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="a directory below the pod's own files, read only; several: topmost first (default: "
        "what is mounted at the pod's root, else as configured, else as the last time)",
    )
    add.add_argument(
        "--ip", metavar="A.B.C.D/N", type=_address, help="the pod's address (default: a free one)"
    )

    add.add_argument("--if-needed", action="store_true", help="do nothing if it is added already")

    addproc = verbs.add_parser("addproc", help="start a program in a pod")
    addproc.set_defaults(run=_addproc)
    _add_pod(addproc)
    addproc.add_argument("program", metavar="PROGRAM", help="its path inside the pod")
    addproc.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER)

    checkpointing.add_verbs(verbs)

    remove = verbs.add_parser(
        "rm", help="remove a pod and its file from this host; its base is left alone"
    )
    remove.set_defaults(run=_remove)
    _add_pod(remove)
    remove.add_argument(
        "--purge", action="store_true", help="even if it has files of its own: they are deleted"
    )

    migrate = verbs.add_parser("migrate", help="move a running pod to another host")
    migrate.set_defaults(run=_migrate)
    _add_pod(migrate)
    migrate.add_argument("host", metavar="HOST", help="as autopod host list shows it")
    migrate.add_argument(
        "--dry-run", action="store_true", help="only ask both hosts whether it can be done"
    )

    service.add_verbs(verbs)
    fleet.add_verbs(verbs)
    _add_host(verbs.add_parser("host", help="the hosts that pods can move between"))

    overlaying.add_verbs(verbs)

    listing = verbs.add_parser("list", help="show the pods of this host")
    listing.set_defaults(run=_list)
    listing.add_argument("--json", action="store_true", help="as an array of objects")
    return parser


def _add_host(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    init = verbs.add_parser("init", help="give this host a name, a key pair and a certificate")
    init.set_defaults(run=_host_init)
    init.add_argument("--name", metavar="NAME", help="(default: the host name)")
    init.add_argument(
        "--address",
        metavar="ADDRESS[:PORT]",
        help="where other hosts reach its service (default: the host name, port 7463)",
    )
    invite = verbs.add_parser("invite", help="print an invitation, which another host can join by")
    invite.set_defaults(run=_host_invite)
    join = verbs.add_parser("join", help="make this host and one that invited it know each other")
    join.set_defaults(run=_host_join)
    join.add_argument("address", metavar="ADDRESS[:PORT]", help="of the other host's service")
    join.add_argument("invitation", metavar="INVITATION", help="as printed there")
    listing = verbs.add_parser("list", help="show this host and those that it knows")
    listing.set_defaults(run=_host_list)
    listing.add_argument("--json", action="store_true", help="as an array of objects")
    remove = verbs.add_parser("rm", help="forget a host, and no longer trust its archives")
    remove.set_defaults(run=_host_remove)
    remove.add_argument("host", metavar="HOST")


def _add_pod(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", metavar="POD", type=commandline.pod)


def _address(text: str) -> str:
    from ipaddress import IPv4Interface

    try:
        IPv4Interface(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    if "/" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} lacks the prefix length, like /24")
    return text


def _add(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.add import add
    from ckpt import stack
    from launcher.lock import locked

    with locked(places, arguments.pod):
        if arguments.if_needed and stack.is_mounted(places, arguments.pod):
            print(f"pod {arguments.pod} is added already")
            return 0
        own = add(places, arguments.pod, arguments.base, arguments.ip)
    at = f" at {' and '.join(address for address, _ in own.pairs)}" if own else ""
    print(f"pod {arguments.pod}{at}, root {places.root(arguments.pod)}")
    return 0


def _addproc(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands

    commands.start(places, arguments.pod, [arguments.program, *arguments.arguments])
    return 0


def _remove(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.remove import remove
    from launcher.lock import locked

    with locked(places, arguments.pod):
        remove(places, arguments.pod, purge=arguments.purge)
    if places.guard().exists():
        fleet.forget(places, arguments.pod)
    return 0


def _list(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import overview

    rows = overview.gather(places)
    print(overview.as_json(rows) if arguments.json else overview.table(rows), end="")
    return 0


def _migrate(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import migrate, moves
    from ckpt import progress, show

    pod, host = arguments.pod, arguments.host
    if arguments.dry_run:
        migrate.check(places, pod, host)
        print(f"pod {pod} can move to {host}")
        return 0
    with moves.recorded(places, pod, host, progress.for_terminal()) as told:
        report = migrate.migrate(places, pod, host, progress=told)
    print(
        f"pod {pod}: now at {host}; down {report.down_ns / 1e6:.0f} ms, "
        f"total {report.total_ns / 1e6:.0f} ms, sent {show.size(report.sent)}"
    )
    for note in report.notes:
        print(f"pod {pod}: note: {note}")
    return 0


def _host_init(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import hosts

    own = hosts.init(places, arguments.name, arguments.address)
    print(f"this host is {own.name} at {own.address}")
    return 0


def _host_invite(places: Places, _arguments: argparse.Namespace) -> int:
    from autopod import hosts, joining

    invitation = joining.invite(places)
    print(f"autopod host join {hosts.load_own(places).address} {invitation}")
    return 0


def _host_join(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import joining

    name = joining.join(places, arguments.address, arguments.invitation)
    print(f"this host and {name} know each other")
    return overlaying.follow(places)


def _host_list(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import hosts, overview

    rows = hosts.rows(places)
    text = [("HOST", "ADDRESS", "KEY"), *((r.host, r.address, r.key[:16]) for r in rows)]
    print(overview.as_json(rows) if arguments.json else overview.columns(text), end="")
    return 0


def _host_remove(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import hosts

    hosts.remove(places, arguments.host)
    return overlaying.follow(places)


if __name__ == "__main__":
    command()
