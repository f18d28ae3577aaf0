"""What a move says of itself while it goes on, for whoever looks: `/run/autopod/POD/moving`.

Nothing depends on it: who has the pod is in autopod/journal.py.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from autopod import journal
from ckpt.progress import Progress
from launcher import pods
from launcher.places import Places

_EVERY_S: Final = 0.25


class Move(msgspec.Struct, frozen=True):
    """A pod on its way.

    Attributes:
        pod: its name.
        host: where it goes; None: it comes here.
        step: what is being done.
        done_bytes: sent so far, of files and memory.
        began: when, in seconds of the epoch; 0: not known.
        pid: of the process that moves it; 0: not known.
        pid_start: when that was started, in ticks since the boot.
    """

    pod: str
    host: str | None
    step: str
    done_bytes: int = 0
    began: float = 0
    pid: int = 0
    pid_start: int = 0


class Recorded:
    """Progress that is written down, and passed on."""

    def __init__(self, file: Path, move: Move, shown: Progress) -> None:
        self._file, self._move, self._shown = file, move, shown
        self._next = 0.0

    @contextmanager
    def step(self, label: str, total_bytes: int | None = None) -> Iterator[None]:
        """Write down that the block is being done."""
        self._move = replace(self._move, step=label)
        self._write()
        with self._shown.step(label, total_bytes):
            yield

    def advance(self, done_bytes: int) -> None:
        """Count bytes; they are written down now and then."""
        self._move = replace(self._move, done_bytes=self._move.done_bytes + done_bytes)
        if time.monotonic() >= self._next:
            self._write()
        self._shown.advance(done_bytes)

    def _write(self) -> None:
        """What cannot be written down is not: a move does not fail because of its looks."""
        if os.getpid() != self._move.pid:  # a forked child
            return
        self._next = time.monotonic() + _EVERY_S
        new = self._file.with_name(f".{self._file.name}.{self._move.pid}")
        with suppress(OSError):
            new.write_bytes(msgspec.json.encode(self._move))
            new.replace(self._file)


@contextmanager
def recorded(places: Places, pod: str, host: str, shown: Progress) -> Iterator[Progress]:
    """Within the block, have the progress of a move of *pod* to *host* written down.

    Args:
        places: the instance.
        pod: which moves.
        host: where to.
        shown: who is told, too.
    """
    pid = os.getpid()
    move = Move(pod, host, "begin", 0, time.time(), pid, pods.start_time(pid))
    file = _file(places, pod)
    try:
        yield Recorded(file, move, shown)
    finally:
        with suppress(OSError):
            file.unlink()


def going_on(places: Places) -> list[Move]:
    """Return the moves that go on, or were broken off and are not settled yet."""
    found = (_move(places, pod) for pod in pods.names(places))
    return [one for one in found if one is not None]


def _move(places: Places, pod: str) -> Move | None:
    try:
        move = msgspec.json.decode(_file(places, pod).read_bytes(), type=Move)
    except (OSError, msgspec.DecodeError):
        move = None
    if move and move.pid_start and pods.start_time(move.pid) == move.pid_start:
        return replace(move, pod=pod)
    departure = journal.departure(places, pod)
    if departure is not None:
        return Move(pod, departure.host, "the other host is asked whether it has it")
    if journal.returns(places, pod):
        return Move(pod, None, "it comes back: it was not taken")
    return Move(pod, None, "it is being built here") if journal.arriving(places, pod) else None


def _file(places: Places, pod: str) -> Path:
    return places.run(pod) / "moving"
