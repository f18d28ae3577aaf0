"""What the page lets an administrator do: the ordinary commands, as processes of their own.

They go on when the page's process ends; what they have done is where every other command's is.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import IO, Annotated, Final

import msgspec
import trio

from autopod.errors import Refused
from launcher.places import Places

_KEPT: Final = 20
_AT_ONCE: Final = 4
_WORDS: Final = 1 << 14
_PLAN_S: Final = 900

_Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class _Action(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    """What is asked for."""


class Plan(_Action, frozen=True, tag="plan"):
    """Say what a drain would do."""


class DrainNow(_Action, frozen=True, tag="drain"):
    """Drain the host; *plan* is the number of the job that has said what that does."""

    plan: int


class Look(_Action, frozen=True, tag="look"):
    """Look now, and not in its time."""


class Undo(_Action, frozen=True, tag="undo"):
    """Call a drain off."""


class Clear(_Action, frozen=True, tag="clear"):
    """Let the service act again after a drain that failed."""


class SetHold(_Action, frozen=True, tag="hold"):
    """Let the service do nothing, because of *reason*."""

    reason: _Reason


class EndHold(_Action, frozen=True, tag="unhold"):
    """Let it act again."""


class Migrate(_Action, frozen=True, tag="migrate"):
    """Move a pod to a host; *trial*: only ask whether that can be."""

    pod: _Name
    host: _Name
    trial: bool = False


Action = Look | Plan | DrainNow | Undo | Clear | SetHold | EndHold | Migrate


_PLAIN: Final[dict[type[Action], tuple[str, ...]]] = {
    Look: ("status", "--keep"),
    Plan: ("drain", "--dry-run"),
    Undo: ("drain", "--undo"),
    Clear: ("drain", "--clear"),
    EndHold: ("hold", "--off"),
}


class Job(msgspec.Struct, frozen=True):
    """A command that the page has begun.

    Attributes:
        number: rises from each to the next.
        do: which action.
        words: the command, as a person would have given it.
        began: in seconds of the epoch.
        ended: likewise; None: it still runs.
        status: its exit status.
        said: what it has printed.
    """

    number: int
    do: str
    words: list[str]
    began: float
    ended: float | None = None
    status: int | None = None
    said: str = ""


def words(action: Action, pods: Iterable[str], hosts: Iterable[str], jobs: "Jobs") -> list[str]:
    """Return the arguments of `autopod` that do *action*. Nothing of it can be an option.

    Raises:
        Refused: it cannot be asked for.
    """
    match action:
        case DrainNow(plan=plan):
            if not jobs.is_plan(plan):
                raise Refused("look first at what it would do: its plan is missing, or too old")
            return ["drain"]
        case SetHold(reason=reason):
            return ["hold", f"--reason={reason}"]
        case Migrate(pod=pod, host=host, trial=trial):
            if pod not in pods:
                raise Refused(f"there is no pod {pod!r}")
            if host not in hosts:
                raise Refused(f"host {host!r} is not known")
            return ["migrate", pod, host, *(["--dry-run"] if trial else [])]
        case _:
            return list(_PLAIN[type(action)])


class Jobs:
    """The commands that were begun, the newest of them; *changed* is called at each change."""

    def __init__(self, places: Places, nursery: trio.Nursery, changed: Callable[[], None]) -> None:
        self._places, self._nursery, self._changed = places, nursery, changed
        self._jobs: dict[int, Job] = {}
        self._said: dict[int, IO[bytes]] = {}
        self._next = 1

    def all(self) -> list[Job]:
        """Return them, the oldest first, with what they have said so far."""
        return [
            msgspec.structs.replace(job, said=self._read(job.number)) for job in self._jobs.values()
        ]

    def is_plan(self, number: int) -> bool:
        """Is that a plan of now, which was made?"""
        job = self._jobs.get(number)
        if job is None or job.do != "plan" or job.ended is None:
            return False
        return time.time() - job.ended < _PLAN_S

    async def start(self, do: str, argv: list[str]) -> Job:
        """Begin a command.

        Raises:
            Refused: there are too many already.
            OSError: it cannot be begun.
        """
        if sum(job.ended is None for job in self._jobs.values()) >= _AT_ONCE:
            raise Refused("too many commands still run", "wait for one of them to end")
        number, self._next = self._next, self._next + 1
        output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the job is forgotten)
        self._said[number] = output
        self._jobs[number] = job = Job(number, do, ["autopod", *argv], time.time())
        try:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "autopod.cli", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "AUTOPOD_PREFIX": os.fspath(self._places.prefix)},
            )
        except BaseException:
            self._forget(number)
            raise
        self._nursery.start_soon(self._follow, process, job)
        self._changed()
        for old in [one.number for one in self._jobs.values() if one.ended is not None][:-_KEPT]:
            self._forget(old)
        return job

    async def _follow(self, process: trio.Process, job: Job) -> None:
        status = await process.wait()  # cancelled, it does not end the process
        self._jobs[job.number] = msgspec.structs.replace(job, ended=time.time(), status=status)
        self._changed()

    def _read(self, number: int) -> str:
        """Return the end of what a job has printed."""
        fd = self._said[number].fileno()
        size = os.fstat(fd).st_size
        text = os.pread(fd, _WORDS, max(0, size - _WORDS)).decode(errors="replace")
        return text if size <= _WORDS else f"[…]\n{text}"

    def _forget(self, number: int) -> None:
        del self._jobs[number]
        self._said.pop(number).close()
