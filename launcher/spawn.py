"""Processes on their way into a pod: fork, report to the launcher, and never come back.

Such a process is not dumpable, so that no process of the pod can open the interpreter, its memory
or its descriptors through /proc; and it imports nothing any more, since the import path would be
looked up in the pod's root. What it has to say goes through a pipe that is close-on-exec: its end
without an error means that the program runs.
"""

import os
import sys
from collections.abc import Callable
from typing import Final

from launcher import abi, confine
from launcher.errors import SpawnFailed
from launcher.execute import StepFailed

_ERROR: Final = b"error"
_FAILED: Final = 125


class Report:
    """The pipe from the processes on their way to the launcher."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)

    def say(self, word: bytes, *values: object) -> None:
        """Send a line; called by a process on its way."""
        os.write(self._writer, b" ".join([word, *(str(v).encode() for v in values)]) + b"\n")

    def listen(self) -> None:
        """Keep only the reading end; called by the launcher once it has forked."""
        os.close(self._writer)
        self._lines = os.fdopen(self._reader, "rb")

    def expect(self, word: bytes) -> str:
        """Return what follows *word* in the next line.

        Raises:
            SpawnFailed: something else came, or nothing.
        """
        line = self._lines.readline()
        got, _, rest = line.rstrip(b"\n").partition(b" ")
        if got != word:
            raise _failure(got, rest)
        return rest.decode()

    def finish(self) -> None:
        """Wait until the program runs.

        Raises:
            SpawnFailed: it could not be executed.
        """
        line = self._lines.readline()
        if line:
            got, _, rest = line.rstrip(b"\n").partition(b" ")
            raise _failure(got, rest)

    def close(self) -> None:
        """Close the launcher's end."""
        self._lines.close()


def _failure(word: bytes, rest: bytes) -> SpawnFailed:
    if word != _ERROR:
        return SpawnFailed("a process on its way into the pod was killed")
    errno, _, text = rest.decode().partition(" ")
    return SpawnFailed(text, int(errno))


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
