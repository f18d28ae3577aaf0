"""What becomes of a system call that the freeze interrupted. Pure.

Source: signal(7), "Interruption of system calls and library functions by signal handlers", and
kernel/signal.c: most calls are simply made again. Those with a relative timeout are not: the
kernel keeps what is left of it to itself, and finishes them by restart_syscall(2).
"""

from collections.abc import Sequence
from typing import Final

_TIMER_ABSTIME: Final = 1
_FUTEX_COMMAND: Final = 0x7F
_FUTEX_WAIT: Final = 0

_WAITS_FOREVER: Final = {
    # call: number of its timeout argument, and the value by which it has none
    "epoll_wait": (3, 0xFFFF_FFFF),
    "epoll_pwait": (3, 0xFFFF_FFFF),
    "epoll_pwait2": (3, 0),
    "io_getevents": (4, 0),
    "rt_sigtimedwait": (2, 0),
    "semtimedop": (3, 0),
}
_NO_TIMEOUT: Final = {"semop"}
_RESTS: Final = {
    # call: number of the argument that points to its timeout, and what a unit of its second word is
    "nanosleep": (0, 1),
    "clock_nanosleep": (2, 1),
    "ppoll": (2, 1),
    "pselect6": (4, 1),
    "select": (4, 1000),
}
_CPU_CLOCKS: Final = (2, 3)  # <linux/time.h>


def may_repeat(call: str, arguments: Sequence[int]) -> bool:
    """May a call that the kernel would finish by restart_syscall(2) be made again as it is?

    That is so where the timeout is a point in time, and where the kernel has written what is left
    to the very place from which it reads. Otherwise the call fails with EINTR, which POSIX allows
    for each of them, and says by its arguments, if at all, how much is left.
    """
    if call == "nanosleep":
        return arguments[0] == arguments[1]
    if call == "clock_nanosleep":
        return bool(arguments[1] & _TIMER_ABSTIME) or arguments[2] == arguments[3]
    if call == "futex":
        return arguments[1] & _FUTEX_COMMAND != _FUTEX_WAIT
    return False


def is_quiet(call: str, arguments: Sequence[int]) -> bool:
    """May a call that returned EINTR, only because of the freeze, be made again?

    The kernel never restarts these. Without a timeout nobody can tell the difference.
    """
    if call in _NO_TIMEOUT:
        return True
    if call not in _WAITS_FOREVER:
        return False
    place, forever = _WAITS_FOREVER[call]
    return arguments[place] & forever == forever if forever else arguments[place] == 0


def rest(call: str, arguments: Sequence[int]) -> tuple[int, int] | None:
    """Where has the kernel written what is left of the time of a call that is made again?

    Returns:
        The address of a struct timespec or timeval, and how many nanoseconds its second word counts
        in; None if the call has no such.

    Source: fs/select.c, poll_select_finish(); kernel/time/hrtimer.c, nanosleep_copyout().
    """
    if call not in _RESTS:
        return None
    if call == "clock_nanosleep":
        clock, flags = arguments[0] & 0xFFFF_FFFF, arguments[1]
        if flags & _TIMER_ABSTIME or clock in _CPU_CLOCKS or clock >> 31:
            return None
    place, unit_ns = _RESTS[call]
    return (arguments[place], unit_ns) if arguments[place] else None
