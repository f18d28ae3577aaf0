"""`autopod status`, `drain`, `statusd` and their like as commands: arguments in, lines out.

What they need is imported when they run.
"""

import argparse

from launcher import commandline
from launcher.places import Places

_STATUS = """\
Ask the host's security archives, now, and say what is to be installed, what each package
needs then (none, restart, reboot) and whether what is installed already waits for a reboot.
Neither the host's packages nor apt's own lists are changed. Of archives that cannot be
reached, or are not genuine, or too old, is said: unknown."""
_STATUS_EPILOG = """\
exit status:
  0   it is known how it stands
  3   it is unknown: never a reason for a reboot, always one to look
  4   it is known, and something is wrong with the host (faults)

files:
  /etc/autopod/autopod.toml   which archives are security's, how old their word may be
  /etc/autopod/rules.toml     which packages need what, asked before the rules that are shipped
"""
_DRAIN = """\
Do by hand what the service does before a reboot: look whether each pod can be checkpointed,
move it to a host of act.to or write it to disk, install what security asks for, and see which
kernel the boot will bring. Then it is the administrator who reboots; the service restarts the
pods after the boot. Every step is written down: after a crash, autopod statusd goes on."""
_DRAIN_EPILOG = """\
exit status:
  0   the host can be rebooted (--dry-run: and nothing speaks against it; --undo: the pods run)
  1   it failed; the pods run again, or it is said which does not
  3   it is unknown what is to be installed; nothing was touched

files:
  /etc/autopod/autopod.toml    table act: hosts, commands, windows, holds
  /var/lib/autopod/.drains/    archives of the pods until they run again
"""
_HOLD = """\
Let the service do nothing on this host, though it is enabled to, until --off. That is kept in
/var/lib/autopod/autopod.db; act.hold in /etc/autopod/autopod.toml is the policy's own."""
_NOTIFY = """\
Say who is told of alerts, drains and reboots (notify in /etc/autopod/autopod.toml), and what
waits because they could not be reached."""
_STATUSD = """\
Let other hosts move pods here (where this host has a name: autopod host init), look after the
host at intervals, and, if act.enabled is set in /etc/autopod/autopod.toml, drain and reboot it
when security needs that. With [web] there it serves a page, with [[notify]] it tells people. At
its start it goes on with what was broken off: after a reboot, it restarts the pods. History:
/var/lib/autopod/autopod.db (SQLite)."""
_STATUSD_EPILOG = """\
environment:
  NOTIFY_SOCKET, WATCHDOG_USEC   as systemd sets them: sd_notify(3)
"""


def add_verbs(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    """Add `status`, `drain` and `statusd`."""
    status = verbs.add_parser(
        "status",
        help="show the security updates that this host and its pods need",
        description=_STATUS,
        epilog=_STATUS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    status.set_defaults(run=_status)
    status.add_argument("--json", action="store_true", help="as an object")
    status.add_argument("--explain", action="store_true", help="and why each is as it is")
    status.add_argument(
        "--keep", action="store_true", help="keep the answer, as the service does: for the page"
    )

    statusd = verbs.add_parser(
        "statusd",
        help="be the service: look after this host, and let other hosts reach it",
        description=_STATUSD,
        epilog=_STATUSD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    statusd.set_defaults(run=_statusd)
    statusd.add_argument(
        "--listen",
        metavar="ADDRESS[:PORT]",
        default="0.0.0.0",  # noqa: S104 (who may do what is decided by keys)
        help="where to listen (default: %(default)s, port 7463)",
    )
    _add_drain(verbs)
    _add_hold(verbs)
    top = verbs.add_parser("top", help="show the host, its pods and what goes on, again and again")
    top.set_defaults(run=_top)
    top.add_argument("--once", action="store_true", help="a single time")


def _add_hold(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    hold = verbs.add_parser(
        "hold", help="let the service do nothing on this host for now", description=_HOLD
    )
    hold.set_defaults(run=_hold)
    what = hold.add_mutually_exclusive_group()
    what.add_argument("--reason", metavar="TEXT", type=_reason, help="why", default="by hand")
    what.add_argument("--off", action="store_true", help="let it act again")
    notify = verbs.add_parser(
        "notify", help="show who is told of what happens, and try it", description=_NOTIFY
    )
    notify.set_defaults(run=_notify)
    notify.add_argument("--test", action="store_true", help="tell each of them something, now")


def _reason(text: str) -> str:
    if not (text.strip() and text.isprintable() and len(text) <= 200):
        raise argparse.ArgumentTypeError(f"{text[:200]!r} is no line of 1 to 200 characters")
    return text.strip()


def _add_drain(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    drain = verbs.add_parser(
        "drain",
        help="move or checkpoint all pods, and install what a reboot is needed for",
        description=_DRAIN,
        epilog=_DRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    drain.set_defaults(run=_drain)
    drain.add_argument("--json", action="store_true", help="as an object")
    drain.add_argument("--no-install", action="store_true", help="only empty the host of pods")
    what = drain.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="say what would be done, and why not")
    what.add_argument("--undo", action="store_true", help="restart the pods here, without a reboot")
    what.add_argument(
        "--clear", action="store_true", help="let the service act again after a failed drain"
    )


def _status(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.status import check, report, store

    found = check.look(places)
    if arguments.keep:
        with store.opened(places) as history:
            history.add_report(found.at, found.level, report.as_json(found))
    shown = (
        report.as_json(found) if arguments.json else report.text(found, explain=arguments.explain)
    )
    print(shown, end="")
    return report.status(found)


def _drain(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.status import byhand

    if arguments.undo:
        said = byhand.undo(places)
    elif arguments.clear:
        said = byhand.clear(places)
    elif arguments.dry_run:
        said = byhand.rehearse(places, install=not arguments.no_install)
    else:
        said = byhand.drain(places, install=not arguments.no_install)
    print(byhand.as_json(said) if arguments.json else byhand.text(said), end="")
    return said.status


def _top(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import top

    top.watch(places, once=arguments.once)
    return 0


def _hold(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.status import store

    with store.opened(places) as history:
        changed = history.set_hold(None if arguments.off else arguments.reason)
    free = "the service may act" if changed else "nothing was held"
    print(free if arguments.off else f"held: {arguments.reason}")
    return 0


def _notify(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.errors import Refused
    from autopod.status import notices, outbox, policy, store

    if arguments.test:
        said = notices.test(places)
        if not said:
            where = policy.path(places)
            raise Refused("nobody is told of anything", f"name somebody: [[notify]] in {where}")
        for name, why in said.items():
            print(f"{name}: {'was told' if why is None else f'was not told: {why}'}")
        return int(any(said.values()))
    with store.opened(places) as history:
        waits = outbox.waiting(history)
    for name in notices.named(policy.load(places).notify):
        mine = [one for one in waits if one.receiver == name]
        print(f"{name}: {len(mine)} waiting" if mine else name)
        for one in mine:
            print(f"  {one.notice.at}: {one.notice.text}; {one.tries} tries: {one.failed or '-'}")
    return 0


def _statusd(places: Places, arguments: argparse.Namespace) -> int:
    import trio

    from autopod import statusd

    trio.run(statusd.serve, places, arguments.listen)
    return 0
