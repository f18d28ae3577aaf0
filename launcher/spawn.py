"""Processes on their way into a pod: fork, report to the launcher, and never come back.

Such a process is not dumpable, so that no process of the pod can open the interpreter, its memory
or its descriptors through /proc; and it imports nothing any more, since the import path would be
looked up in the pod's root. What it has to say goes through a pipe that is close-on-exec: its end
without an error means that the program runs.
"""

from __future__ import annotations

import os
import sys

from launcher import abi, confine
from launcher.errors import SpawnFailed, StepFailed

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_ERROR: Final = "error"
_FAILED: Final = 125


class Report:
    """The pipe from the processes on their way to the launcher."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._said: dict[str, str] = {}

    def say(self, *words: object) -> None:
        """Send a line; called by a process on its way."""
        os.write(self._writer, " ".join(map(str, words)).encode() + b"\n")

    def listen(self) -> None:
        """Keep only the reading end; called by the launcher once it has forked."""
        os.close(self._writer)
        self._lines = os.fdopen(self._reader, "rb")

    def expect(self, word: str) -> str:
        """Return what somebody says after *word*. Who speaks first is open.

        Raises:
            SpawnFailed: an error was reported, or nobody is left to speak.
        """
        while word not in self._said:
            self._hear(self._lines.readline())
        return self._said[word]

    def finish(self) -> None:
        """Wait until nobody is left to speak: the program runs.

        Raises:
            SpawnFailed: it could not be executed.
        """
        while line := self._lines.readline():
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        word, _, rest = line.decode().rstrip("\n").partition(" ")
        if word == _ERROR:
            errno, _, text = rest.partition(" ")
            raise SpawnFailed(text, int(errno))
        if not line:
            raise SpawnFailed("a process on its way into the pod was killed")
        self._said[word] = rest

    def close(self) -> None:
        """Close the launcher's end."""
        self._lines.close()


def fork(work: Callable[[], None], report: Report) -> int:
    """Return the pid of a new process that does *work*, says why if it fails, and exits."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except StepFailed as e:
        report.say(_ERROR, 0, e)
    except OSError as e:
        where = f": {os.fsdecode(e.filename)}" if e.filename else ""
        report.say(_ERROR, e.errno, f"{e.strerror}{where}")
    finally:
        if (error := sys.exc_info()[1]) is not None:
            sys.excepthook(type(error), error, error.__traceback__)
        os._exit(_FAILED)


def hide() -> None:
    """Make the calling process unreadable for everybody in the pod, and unable to import."""
    abi.prctl(abi.PR_SET_DUMPABLE, 0)
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()


def become_ordinary() -> None:
    """Take the attributes that a program of a pod begins with."""
    os.chdir("/")
    os.umask(0o022)
    confine.reset_signals()


def close_on_exec() -> None:
    """Let no descriptor but 0, 1 and 2 through the next execve(2)."""
    abi.close_range(3, 0xFFFFFFFF, abi.CLOSE_RANGE_CLOEXEC)
