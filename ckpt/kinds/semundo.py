"""What the kernel will undo to System V semaphores when a process ends: semop(2), SEM_UNDO.

No call tells the adjustments. But semop(2) refuses an operation that would take one out of its
range, with ERANGE, and does either all of its operations or none. So each is found by bisection,
with operations of which the last can never be done (EAGAIN): nothing changes, at no moment.
"""

import errno
from collections.abc import Callable
from typing import Final

import msgspec

from ckpt.kinds import abi, ipcabi
from ckpt.kinds.stages import Stage, Subject, Target
from ckpt.remote import Remote

STAGE = Stage.SETTLE

_TOP: Final = 32767
"""The highest value, and adjustment: SEMVMX and SEMAEM in <linux/sem.h>."""
_NEVER: Final = -_TOP - 1
"""An operation that no value allows."""


class Adjustment(msgspec.Struct, frozen=True, array_like=True):
    """Of a semaphore: number of the set, number in the set, what is added at the end."""

    set: int
    number: int
    adjustment: int


class State(msgspec.Struct, frozen=True):
    """The adjustments that are not 0."""

    adjustments: list[Adjustment]


def collect(subject: Subject) -> State:
    """Ask about each semaphore of the pod, if the process has ever used SEM_UNDO."""
    found = []
    if subject.semaphores.values and _undoes(subject):
        for number, values in subject.semaphores.values.items():
            try:
                for place, value in enumerate(values):
                    adjustment = _find(subject, number, place, value)
                    if adjustment:
                        found.append(Adjustment(number, place, adjustment))
            except PermissionError:
                what = f"what it undoes to the System V semaphores {number}"
                subject.refuse(what, "it may no longer use them, and nobody else can ask", "")
    return State(found)


def rebuild(state: State, target: Target) -> None:
    """Have the process do and undo so much that its adjustments are those; no value changes."""
    for found in state.adjustments:
        left = found.adjustment
        while left:
            step = max(left, -_TOP)
            _adjust(target.remote, found.set, found.number, step)
            left -= step


def _adjust(remote: Remote, set_id: int, number: int, adjustment: int) -> None:
    value = remote.syscall("semctl", set_id, number, ipcabi.GETVAL, 0)
    undone = (number, -adjustment, ipcabi.SEM_UNDO)
    done = (number, adjustment, 0)
    operations = [done, undone] if adjustment > 0 else [undone, done]
    if value:  # so that there is room up to the highest one
        operations = [(number, -value, 0), *operations, (number, value, 0)]
    remote.syscall("semop", set_id, ipcabi.sembufs(*operations), len(operations))


def _undoes(subject: Subject) -> bool:
    """Has the process a list of adjustments, be it empty? The pod's init has none."""
    pid = subject.host_pid
    for tid in subject.tids:
        if abi.kcmp(pid, tid, ipcabi.KCMP_SYSVSEM, 0, 0):
            subject.refuse(f"host thread {tid}", "it undoes semaphores by itself", "")
    return bool(abi.kcmp(pid, subject.semaphores.init_host_pid, ipcabi.KCMP_SYSVSEM, 0, 0))


def _find(subject: Subject, set_id: int, number: int, value: int) -> int:
    """Return the adjustment of a semaphore with this value."""
    empty = [(number, -value, 0)] if value else []

    def is_above(bound: int) -> bool:
        return refused((number, _TOP - bound, 0), (number, bound - _TOP, ipcabi.SEM_UNDO))

    def is_below(bound: int) -> bool:
        return refused((number, _TOP + 1 + bound, ipcabi.SEM_UNDO))

    def is_negative() -> bool:
        return refused(
            (number, _TOP, ipcabi.SEM_UNDO), (number, -_TOP, 0), (number, 1, ipcabi.SEM_UNDO)
        )

    def refused(*probe: tuple[int, int, int]) -> bool:
        operations = [*empty, *probe, (number, _NEVER, ipcabi.IPC_NOWAIT)]
        try:
            buffer = ipcabi.sembufs(*operations)
            subject.remote.syscall("semop", set_id, buffer, len(operations))
        except OSError as e:
            if e.errno not in {errno.ERANGE, errno.EAGAIN}:
                raise
            return e.errno == errno.ERANGE
        raise AssertionError("semop(2) has done what cannot be done")

    if is_above(0):
        return bisect(is_above)
    if is_negative():
        return -bisect(lambda bound: is_below(-bound))
    return 0


def bisect(exceeds: Callable[[int], bool]) -> int:
    """Return the least number from 1 on that *exceeds* denies; 32768 is one. Pure."""
    low, high = 1, _TOP + 1
    while low < high:
        middle = (low + high) // 2
        if exceeds(middle):
            low = middle + 1
        else:
            high = middle
    return low
