"""Memory copied ahead, while the pod runs: what stays as it is need not wait for the pod to stand.

Round after round what was written to since the last one is stored, until that is little or does not
become less. Each begins with all threads stopped for some milliseconds, in which the kernel is
asked what was written (ckpt/watch.py); it is read while they run. What is written to meanwhile is
stored anew in the next round, or when the pod stands still.
"""

from collections.abc import Callable
from typing import Final

from ckpt import procfs
from ckpt.arch import x86_64 as arch
from ckpt.copied import Copied
from ckpt.freeze import Freeze, FrozenProcess
from ckpt.kinds import registers
from ckpt.pagestore import PageStore, pieces
from ckpt.tracee import Memory, Tracee
from ckpt.watch import Watched, watch
from launcher import enter, pods

_MOST_ROUNDS: Final = 8
_FEW_BYTES: Final = 2 << 20
_LESS: Final = 0.7


class Ahead:
    """What of a pod's memory is stored already. As a context: nothing is watched after it."""

    def __init__(self, running: pods.Pod, add: Callable[[memoryview], int]) -> None:
        """Store the memory of *running* by *add*: see ckpt.kinds.memory.fill()."""
        self._running, self._add = running, add
        self._watched: dict[int, Watched] = {}
        self._hopeless: set[int] = set()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()

    def copy(self, pass_on: Callable[[], None], settle: Callable[[], None]) -> None:
        """Store what is in the pod's memory.

        Args:
            pass_on: called from time to time.
            settle: called after each round: what is still to be done about it is done while the pod
                runs, and not when it stands still.

        Raises:
            NotCheckpointable: it cannot be stopped.
            OSError: of *add*, *pass_on* or *settle*.
        """
        before = 0
        for number in range(_MOST_ROUNDS):
            self._mark()
            size = sum(self._read(watched, pass_on) for watched in self._watched.values())
            settle()
            if size <= _FEW_BYTES or (number and size > before * _LESS):
                break
            before = size

    def finish(self, frozen: list[FrozenProcess]) -> dict[int, Copied]:
        """Return what of the *frozen* pod is stored as it is now, by host pid; end the watch."""
        copied = {}
        for process in frozen:
            watched = self._watched.get(process.host_pid)
            if watched and process.threads:
                watched.settle(process.view)
                copied[process.host_pid] = watched.copied
        self.__exit__()
        return copied

    def _mark(self) -> None:
        """Stop all threads and note what is to be read; begin to watch those that are new."""
        with Freeze() as freeze:
            frozen = freeze.stop_all(lambda: enter.pids(self._running))
            quiet = [tracee for process in frozen for tracee in _quiet(process)]
            for process in frozen:
                if process.threads:
                    self._mark_one(process)
            for tracee in quiet:
                registers.repeat_quietly(tracee)

    def _mark_one(self, process: FrozenProcess) -> None:
        pid = process.host_pid
        if pid not in self._watched and pid not in self._hopeless:
            watched = watch(process)
            if watched is None:
                self._hopeless.add(pid)
            else:
                self._watched[pid] = watched
        if pid in self._watched:
            self._watched[pid].take(process.view)

    def _read(self, watched: Watched, pass_on: Callable[[], None]) -> int:
        """Store what a process has written to; return how much that is.

        What it has unmapped meanwhile, or taken along into its end, is not missed.
        """
        numbers: list[tuple[int, int, Callable[[], int]]] = []
        try:
            memory = Memory(watched.view)
        except (FileNotFoundError, ProcessLookupError):
            return 0
        with memory:
            store = PageStore(memory, self._add)
            for start, end in watched.written:
                for at, length in pieces(start, end):
                    # What is to be read is not stored: if it cannot be read now, it is later.
                    watched.copied.cut(at, at + length)
                    try:
                        numbers.append((at, length, store.read(at, length)))
                    except OSError:
                        continue
                    pass_on()
            store.flush()
        for at, length, number in numbers:
            watched.copied.put(at, at + length, number())
        return sum(length for _, length, _ in numbers)


def _quiet(process: FrozenProcess) -> list[Tracee]:
    """Return the threads of which a call that was interrupted is to be made again."""
    found = []
    for tracee in process.threads:
        now = tracee.registers()
        if arch.returns_eintr(now):
            path = f"task/{tracee.tid}/status"
            status = procfs.parse_status(procfs.read(process.host_pid, path))
            if registers.is_quiet(now, status):
                found.append(tracee)
    return found
