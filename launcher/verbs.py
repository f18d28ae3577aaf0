"""The command line of `launcher`: what people type; the work is done elsewhere."""

import argparse
import sys
from collections.abc import Callable

from launcher import commandline
from launcher.places import Places

_DESCRIPTION = """\
Start, enter and end pods.

A pod's root is mounted by `stackfs mount POD --lower DIR`; its configuration is
/etc/autopod/pods/POD.toml, all of it optional.
"""

_START = """\
Start PROGRAM in POD in the background; return when it runs.

The pod is made if it is not running. The program's output goes to the pod's log (`launcher logs
POD`). Without PROGRAM it is the pod's service, as configured.
"""

_RUN = """\
Run PROGRAM in POD, attached; exit with its status.

The pod is made if it is not running, and then ends with the program unless others run in it by
that time. Where stdin is a terminal, the program gets one of the pod's own.

Exit status: the program's; 128+N if signal N killed it; 125 the launcher failed, 126 the program
cannot be executed, 127 it is not there.
"""

_PROGRAM = "its path inside the pod"

_EXEC = "Run PROGRAM in POD, which must be running; otherwise as `launcher run`."

_ATTACH = """\
Attach to a terminal of POD again: /dev/pts/PTS, or the only one.

Three times Ctrl-] detaches; the program goes on.
"""

_SERVE = """\
Start the service of POD, as configured; return when it is over. SIGTERM stops the pod.

For a service manager: tells it when the service runs (sd_notify(3)). If it is killed the pod goes
on, and the next `launcher serve` watches it again.
"""

_POLICY = """\
Print what POD's programs cannot ask of the kernel, a system call per line.

It follows from the pod's configuration; the pod need not run.
"""

_PROBE = """\
Try the known ways out of POD, from inside, as one of its programs; the pod must be running.

A line for each: held; open; or granted, where the pod's configuration opens it on purpose.
Nothing is done that harms the pod or the host. Exit status: 1 if any is open.
"""

_TOP = """\
Show what the running pods use: processor time, memory, pressure (PSI).

In a terminal the table is renewed every second until Ctrl-C; elsewhere, and with --json, it is
printed once. CPU is in seconds of all the pod's life, MEMORY and LIMIT are in KiB, the pressures
in percent of the last ten seconds.
"""

_LIST = "List the pods that this host knows. AGE is in seconds."

_PS = """\
List the processes of POD. RSS is in KiB, AGE in seconds; PID, PARENT and USER are the pod's own.
"""

_Run = Callable[[Places, argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Run the command line *argv*, or that of the process; return the exit status."""
    arguments = parser().parse_args(argv)
    return commandline.run("launcher", arguments, arguments.failed)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = commandline.Parser(
        prog="launcher",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show a traceback when something fails"
    )
    parser.set_defaults(failed=1)
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def verb(name: str, run: _Run, text: str, summary: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = verbs.add_parser(
            name,
            help=summary,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    _add_programs(verb)
    _add_lives(verb)
    _add_tables(verb)
    return parser


_Verb = Callable[[str, _Run, str, str], argparse.ArgumentParser]


def _add_programs(verb: _Verb) -> None:
    start = verb("start", _start, _START, "start a program in a pod, in the background")
    start.add_argument(
        "--dry-run", action="store_true", help="print the steps that would make the pod"
    )
    run = verb("run", _run, _RUN, "run a program in a pod, attached")
    run.set_defaults(make=True, failed=125)
    exec_ = verb("exec", _run, _EXEC, "run a program in a running pod, attached")
    exec_.set_defaults(make=False, failed=125)
    for attached in (run, exec_):
        attached.add_argument(
            "-t", "--terminal", action="store_true", help="give it a terminal, whatever stdin is"
        )
    for parser in (start, run, exec_):
        _add_pod(parser)
        nargs = "?" if parser is start else None
        parser.add_argument("program", metavar="PROGRAM", nargs=nargs, help=_PROGRAM)
        rest = parser.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER)
        rest.required = False  # else it is named where PROGRAM alone is missing


def _add_lives(verb: _Verb) -> None:
    attach = verb("attach", _attach, _ATTACH, "attach to a terminal of a pod again")
    serve = verb("serve", _serve, _SERVE, "run a pod's service, for systemd")
    stop = verb(
        "stop", _stop, "End POD: SIGTERM to every process, wait, kill what is left.", "end a pod"
    )
    kill = verb("kill", _kill, "Kill POD and all its processes at once.", "kill a pod")
    for parser in (attach, serve, stop, kill):
        _add_pod(parser)
    attach.add_argument("pts", metavar="PTS", type=int, nargs="?")
    stop.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        help="until it is killed (default: as configured, or 10)",
    )


def _add_tables(verb: _Verb) -> None:
    listing = verb("list", _list, _LIST, "list pods")
    top = verb("top", _top, _TOP, "show what pods use")
    ps = verb("ps", _ps, _PS, "list a pod's processes")
    logs = verb("logs", _logs, "Print what the programs of POD have written.", "print a pod's log")
    policy = verb("policy", _policy, _POLICY, "print the system-call policy of a pod")
    probe = verb("probe", _probe, _PROBE, "try to get out of a pod")
    for parser in (ps, logs, policy, probe):
        _add_pod(parser)
    for parser in (listing, top, ps, policy, probe):
        parser.add_argument("--json", action="store_true", help="as an array of objects")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as the log grows")


def _add_pod(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", metavar="POD", type=commandline.pod)


def _start(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands

    if arguments.dry_run:
        print("\n".join(commands.describe(places, arguments.pod)))
    else:
        given = [arguments.program, *arguments.arguments] if arguments.program else []
        commands.start(places, arguments.pod, given)
    return 0


def _run(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands

    argv = [arguments.program, *arguments.arguments]
    return commands.run(places, arguments.pod, argv, arguments.terminal, make=arguments.make)


def _attach(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands

    commands.attach(places, arguments.pod, arguments.pts)
    return 0


def _serve(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands

    commands.serve(places, arguments.pod)
    return 0


def _stop(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands

    commands.stop(places, arguments.pod, arguments.timeout)
    return 0


def _kill(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands

    commands.kill(places, arguments.pod)
    return 0


def _list(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import tables

    tables.show(tables.pods_known(places), tables.PodRow, as_json=arguments.json)
    return 0


def _top(places: Places, arguments: argparse.Namespace) -> int:
    import time

    from launcher import tables, usage

    live = sys.stdout.isatty() and not arguments.json
    while True:
        rows = usage.running(places)
        if live:
            sys.stdout.write("\33[H\33[J")  # home, and clear what is below
        tables.show(rows, usage.UsageRow, as_json=arguments.json)
        if not live:
            return 0
        sys.stdout.flush()
        time.sleep(1)


def _ps(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import tables

    rows = tables.processes(places, arguments.pod)
    tables.show(rows, tables.ProcessRow, as_json=arguments.json)
    return 0


def _policy(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import config, policytable, tables

    privileges = config.load(places, arguments.pod).privileges
    if not arguments.json:
        if not places.config(arguments.pod).exists():
            print(f"{places.config(arguments.pod)} is not there: all is at its default")
        print("\n".join(policytable.heading(privileges)), end="\n\n")
    rows = policytable.rows(privileges)
    tables.show(rows, policytable.CallRow, as_json=arguments.json)
    return 0


def _probe(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands, tables
    from launcher.probe import AttemptRow

    rows = commands.probe(places, arguments.pod)
    tables.show(rows, AttemptRow, as_json=arguments.json)
    return int(any(row.state == "open" for row in rows))


def _logs(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import commands

    commands.logs(places, arguments.pod, follow=arguments.follow)
    return 0
