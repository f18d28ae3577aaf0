"""Stopping every thread of a pod, and letting them all go again.

ptrace(2) stops the threads: it leaves no trace that the program could see, needs no control group,
and lets go by itself when the tracer dies. New processes and threads may appear while the others
are being stopped, so the lists are read again until nothing new is found.

A thread that does not stop may be waiting for one that has stopped already: a parent in vfork(2)
for its child. So those that have stopped are let go for a while, and all is tried anew with more
patience. The thread itself stays seized: what has not stopped cannot be detached (ptrace(2)).
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct, field

from ckpt import abi, procfs
from ckpt.model import NotCheckpointable, Refusal
from ckpt.tracee import DoesNotStop, Tracee, bury

_PATIENCE_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class FrozenProcess(Struct):
    """A stopped process; a zombie has no threads.

    Attributes:
        host_pid: its id in the host's pid namespace.
        pid: its id in the pod's.
        status: fields of the /proc/PID/status of its first thread that lives, at the freeze.
        stat: fields of its /proc/PID/stat, numbered as in proc(5).
        threads: those that live, leader first; it may have ended before others.
    """

    host_pid: int
    pid: int
    status: dict[str, str]
    stat: list[str]
    threads: list[Tracee] = field(default_factory=list)

    @property
    def command(self) -> str:
        """Its name: comm."""
        return self.stat[2]

    @property
    def leader(self) -> Tracee:
        """The first thread: the one that carries the process's id, unless it has ended."""
        return self.threads[0]

    @property
    def view(self) -> int:
        """Host id of a thread that lives: what the process has is in /proc there."""
        return self.leader.tid

    def refusal(self, what: str, why: str, hint: str = "") -> Refusal:
        """Return a refusal about this process."""
        return Refusal(self.pid, self.command, what, why, hint)


class Freeze:
    """The stopped threads of a pod. As a context: thawed at the end, whatever happened.

    Attributes:
        began_ns: time.monotonic_ns() at the first interrupt.
    """

    def __init__(self) -> None:
        self.began_ns = 0
        self._tracees: dict[int, Tracee] = {}
        self._dying: list[Tracee] = []
        self._leaders: set[int] = set()

    def __enter__(self) -> "Freeze":
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()

    def stop_all(self, host_pids: Callable[[], list[int]]) -> list[FrozenProcess]:
        """Stop every thread of the processes that *host_pids* lists, again until none is new.

        Raises:
            NotCheckpointable: a thread is traced by somebody else, or does not stop.
        """
        for patience in _PATIENCE_S:
            try:
                return self._try_stop_all(host_pids, time.monotonic() + patience)
            except DoesNotStop as e:
                if patience == _PATIENCE_S[-1]:
                    raise NotCheckpointable(_refuse_busy(e.tid)) from None
                self.thaw()
                time.sleep(patience / 10)
        raise AssertionError  # the last try has returned or raised

    def _try_stop_all(
        self, host_pids: Callable[[], list[int]], deadline: float
    ) -> list[FrozenProcess]:
        self.began_ns = time.monotonic_ns()
        while True:
            pids = host_pids()
            for pid in pids:
                for tid in procfs.threads(pid):
                    if tid not in self._tracees:
                        self._seize(pid, tid)
            moving = [tracee for tracee in self._tracees.values() if not tracee.stopped]
            if not moving and not self._forget_killed():
                return [process for pid in pids if (process := self._process(pid))]
            self._await(moving, deadline)

    def _forget_killed(self) -> bool:
        """Forget those that others have killed since they stopped; return whether there are such.

        They are zombies then, of which their parents are told.
        """
        killed = [tracee.tid for tracee in self._tracees.values() if tracee.has_ended()]
        for tid in killed:
            del self._tracees[tid]
        return bool(killed)

    def _await(self, tracees: list[Tracee], deadline: float) -> None:
        """Wait until all have stopped, those that can even if one cannot.

        Raises:
            DoesNotStop: the deadline passed.
        """
        busy = None
        for tracee in tracees:
            try:
                if not tracee.wait_stop(deadline):
                    del self._tracees[tracee.tid]
            except DoesNotStop as e:
                if procfs.is_dead(tracee.tid):  # a leader's end is told when all have ended
                    self._dying.append(tracee)
                    del self._tracees[tracee.tid]
                else:
                    busy = e
        self._dying = bury(self._dying, within_s=0)
        if busy is not None:
            raise busy

    def kill_all(self) -> None:
        """Kill all that is stopped: none of it will run again; call await_end() some time."""
        for tracee in self._tracees.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(tracee.tid, signal.SIGKILL)

    def await_end(self) -> None:
        """Wait for the end of all that was killed: of its memory, which takes longest."""
        # A leader is reported when its other threads have been waited for: leaders come last.
        left = [*self._tracees.values(), *self._dying]
        for tracee in sorted(left, key=lambda one: one.tid in self._leaders):
            tracee.await_end()
        self._tracees.clear()
        self._dying.clear()

    def thaw(self) -> None:
        """Let every thread go that has stopped; the others go when this process ends."""
        for tracee in [tracee for tracee in self._tracees.values() if tracee.stopped]:
            if not tracee.detach():
                self._dying.append(tracee)
            del self._tracees[tracee.tid]
        self._dying = bury(self._dying)

    def _seize(self, pid: int, tid: int) -> None:
        try:
            tracee = Tracee.seize(tid, abi.PTRACE_O_TRACESYSGOOD | abi.PTRACE_O_SUSPEND_SECCOMP)
            self._tracees[tid] = tracee
            if tid == pid:
                self._leaders.add(tid)
            tracee.interrupt()
        except ProcessLookupError:
            pass
        except PermissionError:
            if not procfs.is_dead(tid):  # such a one cannot be seized
                raise NotCheckpointable(_refuse_traced(pid)) from None

    def _process(self, host_pid: int) -> FrozenProcess | None:
        threads = [t for tid in procfs.threads(host_pid) if (t := self._tracees.get(tid))]
        view = threads[0].tid if threads else host_pid
        try:
            status = procfs.parse_status(procfs.read(view, "status"))
            stat = procfs.parse_stat(procfs.read(view, "stat"))
        except OSError as e:
            if e.errno in {errno.ENOENT, errno.ESRCH}:
                return None
            raise
        return FrozenProcess(host_pid, procfs.inner_pid(status, "NStgid"), status, stat, threads)


def _refuse_traced(pid: int) -> Refusal:
    status = procfs.parse_status(procfs.read(pid, "status"))
    tracer = int(status["TracerPid"])
    why = f"process {tracer} of the host traces it" if tracer else os.strerror(errno.EPERM)
    return Refusal(procfs.inner_pid(status), status["Name"], "the process", why)


def _refuse_busy(tid: int) -> Refusal:
    status = procfs.parse_status(procfs.read(tid, "status"))
    why = f"it does not stop within {_PATIENCE_S[-1]:g} s (state {status['State']})"
    hint = "a parent waits in vfork(2) until its child calls execve(2); try again later"
    return Refusal(procfs.inner_pid(status), status["Name"], "the process", why, hint)
