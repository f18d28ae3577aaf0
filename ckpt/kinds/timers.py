"""Timers that send signals: setitimer(2) and timer_create(2).

They expire when they would have by the pod's clock, which stands still while the pod does not run,
but for those of processor time, which get what they had left: they are armed last. An expiration
that was due during the freeze is queued as a pending signal.
"""

import struct
from functools import partial
from typing import Final

import msgspec

from ckpt import procfs
from ckpt.kinds import clocks
from ckpt.kinds.flags import signal_name, signal_number
from ckpt.kinds.stages import Stage, Subject, Target

STAGE = Stage.ARM

_INTERVALS: Final = {"real": 0, "virtual": 1, "prof": 2}  # <linux/time.h>: ITIMER_*
_CLOCKS: Final = {  # <linux/time.h>
    "realtime": 0,
    "monotonic": 1,
    "process-cputime": 2,
    "thread-cputime": 3,
    "boottime": 7,
    "realtime-alarm": 8,
    "boottime-alarm": 9,
    "tai": 11,
}
_CLOCK_NAMES: Final = {number: name for name, number in _CLOCKS.items()}
_NOTIFY: Final = {"signal": 0, "none": 1, "thread": 2}  # <asm-generic/siginfo.h>: SIGEV_*
_SIGEV_THREAD_ID: Final = 4
_TIMER_ABSTIME: Final = 1
_ITIMERVAL: Final = struct.Struct("<4q")  # interval, value; seconds and micro- or nanoseconds
_SIGEVENT: Final = struct.Struct("<Qiii44x")
_PR_TIMER_CREATE_RESTORE_IDS: Final = 77  # <linux/prctl.h>, since Linux v6.15
_ATTEMPTS: Final = 1 << 16


class IntervalTimer(msgspec.Struct, frozen=True):
    """A running timer of setitimer(2); times in microseconds."""

    which: str
    value_us: int
    interval_us: int


class PosixTimer(msgspec.Struct, frozen=True):
    """A timer of timer_create(2).

    Attributes:
        id: its kernel id.
        clock: which clock it runs on.
        notify: "signal", "none" or "thread".
        thread: the thread (in the pod) that gets the signal, None for the process.
        signal: the signal it sends.
        value: sigev_value.
        left_ns: time until it expires next; 0 if it is not armed.
        interval_ns: its period.
    """

    id: int
    clock: str
    notify: str
    thread: int | None
    signal: str | None
    value: int
    left_ns: int
    interval_ns: int


class State(msgspec.Struct, frozen=True):
    """All of a process.

    Attributes:
        interval, posix: its timers.
        read_ns: when their times were read, by the pod's monotonic clock; None: unknown.
    """

    interval: list[IntervalTimer]
    posix: list[PosixTimer]
    read_ns: int | None = None


def collect(subject: Subject) -> State:
    """Ask for the times; /proc/PID/timers has the rest."""
    interval, read = [], clocks.now_in(subject.remote)
    for which, number in _INTERVALS.items():
        raw = bytearray(_ITIMERVAL.size)
        later = clocks.now_in(subject.remote) - read if which == "real" else 0
        subject.remote.syscall("getitimer", number, raw)
        period_s, period_us, value_s, value_us = _ITIMERVAL.unpack(raw)
        if any(raw):
            value = value_s * 1_000_000 + value_us
            value += later // 1000 if value else 0
            interval.append(IntervalTimer(which, value, period_s * 1_000_000 + period_us))
    listed = procfs.parse_timers(procfs.read(subject.host_pid, "timers"))
    posix = [timer for entry in listed if (timer := _collect(entry, subject, read))]
    return State(interval, posix, read)


def _collect(entry: procfs.Timer, subject: Subject, read_ns: int) -> PosixTimer | None:
    """Return the timer, with what was left of its time when the clock showed *read_ns*."""
    if entry.clock not in _CLOCK_NAMES:
        why = f"it runs on clock {entry.clock}, the CPU time of one certain process or thread"
        subject.refuse(f"timer {entry.id}", why, "")
        return None
    if entry.tid is not None and entry.tid not in subject.tids:
        subject.refuse(f"timer {entry.id}", "the thread that it signals has ended", "")
        return None
    raw, clock = bytearray(_ITIMERVAL.size), _CLOCK_NAMES[entry.clock]
    later = clocks.now_in(subject.remote) - read_ns if clocks.runs_on(clock) else 0
    subject.remote.syscall("timer_gettime", entry.id, raw)
    period_s, period_ns, left_s, left_ns = _ITIMERVAL.unpack(raw)
    left = left_s * 10**9 + left_ns
    return PosixTimer(
        id=entry.id,
        clock=clock,
        notify=entry.notify,
        thread=None if entry.tid is None else subject.tids[entry.tid],
        signal=signal_name(entry.signal) if entry.signal else None,
        value=entry.value,
        left_ns=left + later if left else 0,
        interval_ns=period_s * 10**9 + period_ns,
    )


def rebuild(state: State, target: Target) -> None:
    """Create and arm them."""
    for old in state.interval:
        _set_interval(old, state.read_ns, target)
    if not state.posix:
        return
    exact = _restore_ids(target, on=True)
    for timer in sorted(state.posix, key=lambda timer: timer.id):
        _create(timer, target, exact=exact)
    if exact:
        _restore_ids(target, on=False)
    for timer in state.posix:
        if timer.left_ns or timer.interval_ns:
            _arm(timer, state.read_ns, target)


def _set_interval(old: IntervalTimer, read_ns: int | None, target: Target) -> None:
    """Set a timer of setitimer(2), which takes no points in time."""
    value = old.value_us or old.interval_us  # it expired just then: the next period
    if old.which == "real" and read_ns is not None:
        value = max(value - (clocks.now_in(target.remote) - read_ns) // 1000, 1)
    raw = _ITIMERVAL.pack(*divmod(old.interval_us, 1_000_000), *divmod(value, 1_000_000))
    target.remote.syscall("setitimer", _INTERVALS[old.which], raw, 0)


def _arm(timer: PosixTimer, read_ns: int | None, target: Target) -> None:
    left = timer.left_ns or timer.interval_ns  # it expired just then: the next period
    absolute, value = clocks.arming(
        timer.clock, left, read_ns, partial(clocks.now_in, target.remote)
    )
    raw = _ITIMERVAL.pack(*divmod(timer.interval_ns, 10**9), *divmod(value, 10**9))
    target.remote.syscall("timer_settime", timer.id, _TIMER_ABSTIME * absolute, raw, 0)


def _restore_ids(target: Target, *, on: bool) -> bool:
    """Have timer_create(2) take the id that it is given; False if this kernel cannot."""
    try:
        target.remote.syscall("prctl", _PR_TIMER_CREATE_RESTORE_IDS, int(on), 0, 0, 0)
    except OSError:
        return False
    return True


def _create(timer: PosixTimer, target: Target, *, exact: bool) -> None:
    """Create *timer* under its id; ids count up, so an older kernel is led there.

    Raises:
        ValueError: that would take too many attempts.
    """
    notify = _NOTIFY[timer.notify] | (0 if timer.thread is None else _SIGEV_THREAD_ID)
    number = signal_number(timer.signal) if timer.signal else 0
    event = _SIGEVENT.pack(timer.value, number, notify, timer.thread or 0)
    for _ in range(_ATTEMPTS):
        raw = bytearray(struct.pack("<i", timer.id if exact else 0))
        target.remote.syscall("timer_create", _CLOCKS[timer.clock], event, raw)
        got = struct.unpack("<i", raw)[0]
        if got == timer.id:
            return
        target.remote.syscall("timer_delete", got)
        if got > timer.id:
            break
    raise ValueError(f"process {target.process.pid}: timer id {timer.id} cannot be had again")
