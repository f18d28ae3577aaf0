"""The `launcher` command: what people type; the work is done elsewhere."""

import os
import sys

import click

from launcher.config import ConfigError
from launcher.errors import PodError
from launcher.places import Places

_AS_PROGRAM = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_POD = click.argument("pod")
_PROGRAM = click.argument("argv", nargs=-1, required=True, metavar="PROGRAM [ARG]...")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print an array of objects.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def launcher(debug: bool) -> None:
    """Start, enter and end pods.

    A pod's root is mounted by `stackfs mount POD --lower DIR`; its configuration is
    /etc/autopod/pods/POD.toml, all of it optional.
    """


@launcher.command(context_settings=_AS_PROGRAM)
@click.option("--dry-run", is_flag=True, help="Print the steps that would make the pod.")
@_POD
@_PROGRAM
def start(pod: str, argv: tuple[str, ...], dry_run: bool) -> int:
    """Start PROGRAM in POD in the background; return when it runs.

    The pod is made if it is not running. The program's output goes to the pod's log (`launcher
    logs POD`), its parent is the pod's init.
    """
    from launcher import commands

    places = Places.from_environment()
    if dry_run:
        click.echo("\n".join(commands.describe(places, pod)))
        return 0
    commands.start(places, pod, list(argv))
    return 0


@launcher.command(context_settings=_AS_PROGRAM)
@click.option("-t", "--terminal", is_flag=True, help="Give it a terminal, whatever stdin is.")
@_POD
@_PROGRAM
def run(pod: str, argv: tuple[str, ...], terminal: bool) -> int:
    """Run PROGRAM in POD, attached; exit with its status.

    The pod is made if it is not running, and then ends with the program unless others run in it
    by that time. Where stdin is a terminal, the program gets one of the pod's own.

    Exit status: the program's; 128+N if signal N killed it; 125 the launcher failed, 126 the
    program cannot be executed, 127 it is not there.
    """
    from launcher import commands

    return commands.run(Places.from_environment(), pod, list(argv), terminal, make=True)


@launcher.command("exec", context_settings=_AS_PROGRAM)
@click.option("-t", "--terminal", is_flag=True, help="Give it a terminal, whatever stdin is.")
@_POD
@_PROGRAM
def exec_(pod: str, argv: tuple[str, ...], terminal: bool) -> int:
    """Run PROGRAM in POD, which must be running; otherwise as `launcher run`."""
    from launcher import commands

    return commands.run(Places.from_environment(), pod, list(argv), terminal, make=False)


@launcher.command()
@_POD
@click.argument("pts", type=int, required=False)
def attach(pod: str, pts: int | None) -> int:
    """Attach to a terminal of POD again: /dev/pts/PTS, or the only one.

    Three times Ctrl-] detaches; the program goes on.
    """
    from launcher import commands

    commands.attach(Places.from_environment(), pod, pts)
    return 0


@launcher.command()
@click.option("--timeout", default=10.0, show_default=True, help="Seconds until it is killed.")
@_POD
def stop(pod: str, timeout: float) -> int:
    """End POD: SIGTERM to every process, wait, kill what is left."""
    from launcher import commands

    commands.stop(Places.from_environment(), pod, timeout)
    return 0


@launcher.command()
@_POD
def kill(pod: str) -> int:
    """Kill POD and all its processes at once."""
    from launcher import commands

    commands.kill(Places.from_environment(), pod)
    return 0


@launcher.command("list")
@_JSON
def list_(as_json: bool) -> int:
    """List the pods that this host knows."""
    from launcher import tables

    rows = tables.pods_known(Places.from_environment())
    tables.show(rows, tables.PodRow, as_json=as_json)
    return 0


@launcher.command()
@_POD
@_JSON
def ps(pod: str, as_json: bool) -> int:
    """List the processes of POD."""
    from launcher import tables

    rows = tables.processes(Places.from_environment(), pod)
    tables.show(rows, tables.ProcessRow, as_json=as_json)
    return 0


@launcher.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
@_POD
def logs(pod: str, follow: bool) -> int:
    """Print what the programs of POD have written."""
    from launcher import commands

    commands.logs(Places.from_environment(), pod, follow=follow)
    return 0


def main() -> int:
    """Run the command line; return the exit status."""
    for fd in (0, 1, 2):
        _open_if_closed(fd)
    try:
        status = launcher.main(prog_name="launcher", standalone_mode=False)
    except click.exceptions.Exit as e:
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is buffered goes nowhere
        return 1
    except (click.UsageError, ConfigError, PodError, ValueError, OSError) as e:
        return _fail(e)
    return status if isinstance(status, int) else 0


def _open_if_closed(fd: int) -> None:
    """Make sure that no descriptor of ours gets the number of a standard stream."""
    try:
        os.fstat(fd)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number, which is *fd*


def _fail(e: Exception) -> int:
    """Say what went wrong in two lines; return the exit status."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    message, hint, status = str(e), "", 125 if verb in ("run", "exec") else 1
    match e:
        case click.UsageError():
            message, hint, status = e.format_message(), f"launcher {verb} --help", 2
        case PodError():
            hint = e.hint
        case PermissionError() if os.geteuid():
            message, hint = str(e), "pods are made by root"
        case OSError(filename=None):
            message = str(e.strerror)
        case OSError():
            message = f"{e.strerror}: {os.fsdecode(e.filename)}"
    if "--debug" in sys.argv[1:2]:
        sys.excepthook(type(e), e, e.__traceback__)
    click.echo(f"launcher: error: {message}", err=True)
    if hint:
        click.echo(f"launcher: hint: {hint}", err=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
