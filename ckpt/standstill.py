"""A pod that stands still for a moment, without having to wait for threads that are in the kernel.

A freeze for a checkpoint (ckpt/freeze.py) waits until each thread has stopped. This one is for
whoever must make the kernel let threads go, and wants them not to go on as the program: with
cgroup.freeze none does, nor does a child that is being forked. Calls that fail with EINTR for that
only (ckpt/interrupted.py) are made again, for which their threads are traced.

Source: Documentation/admin-guide/cgroup-v2.rst; kernel/cgroup/freezer.c, cgroup_freezer_*().
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from ckpt import procfs
from ckpt.kinds import registers
from ckpt.stops import EventStop, Exited, GroupStop, SignalStop, Stop
from ckpt.tracee import Tracee


class Standstill:
    """One standstill after another."""

    def __init__(
        self, freezer: Path | None, note: Callable[[bool], None], *, begun: bool = False
    ) -> None:
        """Begin with none.

        Args:
            freezer: the file that holds the pod, if there is one.
            note: is told before one begins, and when it has ended.
            begun: has one been begun, by somebody else, who cannot end it any more?
        """
        self._freezer, self._note = freezer, note
        self._is_ours = begun
        self._tracees: dict[int, Tracee] = {}

    def begin(self, host_pids: Iterable[int]) -> bool:
        """Keep the pod, whose processes these are, from going on.

        One that waits in the kernel for memory computes until it has that.

        Returns:
            False: it cannot be kept.
        """
        if self._freezer is None:
            return False
        if self._is_ours or self._freezer.read_text().strip() == "0":
            self._is_ours = True
            self._note(True)
            self._freezer.write_text("1")
        for pid in host_pids:
            for tid in procfs.threads(pid):
                if tid not in self._tracees:
                    self._seize(tid)
        return True

    def end(self) -> None:
        """Let the pod go on."""
        if self._is_ours and self._freezer:
            self._freezer.write_text("0")
            self._note(False)
        self._is_ours = False
        self.tend()

    def tend(self) -> bool:
        """Let those go that have stopped after all; return whether there are others."""
        for tracee in list(self._tracees.values()):
            if self._has_stopped(tracee):
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                    _quiet(tracee)
                if tracee.detach():  # else its end is told next
                    del self._tracees[tracee.tid]
        return bool(self._tracees)

    def _seize(self, tid: int) -> None:
        # One that is traced by somebody else, or dead, cannot be.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            tracee = Tracee.seize(tid)
            self._tracees[tid] = tracee
            tracee.interrupt()

    def _has_stopped(self, tracee: Tracee) -> bool:
        """Has it, by now? Signals on the way are delivered."""
        with contextlib.suppress(ProcessLookupError):
            while (stop := _next_stop(tracee)) is not None:
                match stop:
                    case Exited():
                        del self._tracees[tracee.tid]
                        return False
                    case GroupStop() | EventStop():
                        return True
                    case SignalStop(sig):
                        tracee.resume(sig)
                    case _:
                        tracee.resume()
        return False


def _next_stop(tracee: Tracee) -> Stop | None:
    """Return what has happened to it, if anything. Who executes a program loses its number."""
    try:
        return tracee.poll()
    except ChildProcessError:
        return Exited(0)


def _quiet(tracee: Tracee) -> None:
    """Have a call that failed for the stop only be made again."""
    status = procfs.parse_status(procfs.read(tracee.tid, "status"))
    if registers.is_quiet(tracee.registers(), status):
        registers.repeat_quietly(tracee)
