"""The `launcher` command: the short way for what is asked most often, else launcher.verbs.

`launcher exec POD PROGRAM [ARG…]`, and `run` where the pod runs, is little work, and to import what
the command line and the configuration can be takes ten times as long. Where somebody has left the
pod's entrance (launcher.entrance), nothing of that is needed. So this module and what it imports is
kept small: tests/unit/launcher/test_light.py says how. Whatever is out of the ordinary (options,
another configuration than before, a pod that does not run) goes the long way, which works it all
out, and says what is wrong.
"""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from typing import NoReturn

    from launcher.attached import Session
    from launcher.entrance import Entrance

_IN_NAMES = "abcdefghijklmnopqrstuvwxyz0123456789-"
_FAILED = 125


def command() -> NoReturn:
    """Be the command."""
    for fd in (0, 1, 2):
        _open_if_closed(fd)
    status = _short_way(sys.argv[1:])
    if status is not None:
        os._exit(status)  # launcher.commandline.leave() says why
    from launcher import commandline, verbs

    commandline.be(verbs.main)


def _open_if_closed(fd: int) -> None:
    """Make sure that no descriptor of ours gets the number of a standard stream."""
    try:
        os.fstat(fd)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number, which is *fd*


def _short_way(argv: list[str]) -> int | None:
    """Do what *argv* says, and return the exit status; or None: nothing was done."""
    name = asked(argv)
    prefix = os.environ.get("AUTOPOD_PREFIX") or "/"
    if name is None or prefix[0] != "/":
        return None
    gc.disable()  # as in launcher.light: there will be no garbage
    try:
        from launcher import entrance

        way_in = entrance.kept(prefix, name)
        return None if way_in is None else _enter(way_in, argv[2:])
    except KeyboardInterrupt:
        return 130
    except Exception as e:  # noqa: BLE001 (it is told as any command's)
        from launcher import commandline

        return commandline.settle("launcher", e, _FAILED)
    finally:
        gc.enable()


def asked(argv: list[str]) -> str | None:
    """Return the pod that a plain `exec POD PROGRAM…` or `run` names; None for all else. Pure."""
    if len(argv) < 3 or argv[0] not in ("exec", "run") or "--" in argv:
        return None
    _, name, program = argv[:3]
    if not name or name.strip(_IN_NAMES) or name[0] == "-" or program[:1] == "-":
        return None
    return name


def _enter(way_in: Entrance, argv: list[str]) -> int:
    """Run a program in a pod as launcher.commands.run() does; return the exit status."""
    from launcher import attached
    from launcher.errors import SpawnFailed
    from launcher.lock import held

    with_terminal = os.isatty(0)
    # For a terminal or a listener the pod's holder may have to be started, by one at a time.
    alone = with_terminal or way_in.confinement.install is not None
    try:
        with held(way_in.run, way_in.name, shared=not alone):
            start = _start_with_terminal if with_terminal else attached.start
            session = start(way_in, argv)
        status = session.wait()
    except SpawnFailed as e:
        return attached.report(e)
    if status != attached.KILLED:
        return status
    from launcher import commands
    from launcher.places import Places

    return commands.explained(Places.from_environment(), way_in.name, status)


def _start_with_terminal(way_in: Entrance, argv: list[str]) -> Session:
    """Start a program with a terminal: more to import, but neither configuration nor policy."""
    from launcher import light, terminal  # noqa: F401 (light first)
    from launcher.places import Places

    return terminal.start(Places.from_environment(), way_in, argv)


if __name__ == "__main__":
    command()
