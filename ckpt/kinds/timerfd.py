"""Timers that are read as files: timerfd_create(2).

A timer expires when it would have by the pod's clock, which stands still while the pod does not
run. Only one that was set to a point of the wall clock keeps that point: this clock moved on.
"""

import fcntl
import os
import re
import struct
import time
from typing import Final

import msgspec

from ckpt.kinds import abi, clocks, flags
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_CLOCKS: Final = {
    "realtime": time.CLOCK_REALTIME,
    "monotonic": time.CLOCK_MONOTONIC,
    "boottime": time.CLOCK_BOOTTIME,
    "realtime-alarm": 8,  # <linux/time.h>
    "boottime-alarm": 9,
}
_WALL: Final = ("realtime", "realtime-alarm")
_FIELD: Final = re.compile(r"^(clockid|ticks|settime flags): (\d+)$", re.MULTILINE)


class State(msgspec.Struct, frozen=True):
    """A timer.

    Attributes:
        clock: "realtime", "monotonic", "boottime", "realtime-alarm" or "boottime-alarm".
        left_ns: until the next expiration; 0 if it is disarmed or has expired for good.
        interval_ns: of a periodic timer, else 0.
        ticks: expirations not yet read.
        until_ns: the point of the wall clock that it is set to (TFD_TIMER_ABSTIME), else None.
        cancel_on_set: does a jump of that clock cancel it?
        read_ns: when that was, by the pod's monotonic clock; None: unknown.
    """

    clock: str
    left_ns: int
    interval_ns: int
    ticks: int
    until_ns: int | None
    cancel_on_set: bool
    read_ns: int | None = None


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return source.link == "anon_inode:[timerfd]"


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind.

    timerfd_gettime(2) makes the kernel count the expirations of a periodic timer up to now, which
    fdinfo alone does not; a later read gives the same as without.
    """
    read = clocks.now_of(dump.init_host_pid)
    left, interval = abi.timerfd_gettime(source.local_fd)
    with open(f"/proc/self/fdinfo/{source.local_fd}", encoding="ascii") as fdinfo:
        fields = {
            name: int(value, 8 if name == "settime flags" else 10)
            for name, value in _FIELD.findall(fdinfo.read())
        }
    clock = next((n for n, number in _CLOCKS.items() if number == fields["clockid"]), None)
    if clock is None:
        dump.refuse(source, f"it runs by the unknown clock {fields['clockid']}")
        return None
    absolute = clock in _WALL and left and fields["settime flags"] & abi.TFD_TIMER_ABSTIME
    return State(
        clock=clock,
        left_ns=left,
        interval_ns=interval,
        ticks=fields["ticks"],
        until_ns=time.clock_gettime_ns(time.CLOCK_REALTIME) + left if absolute else None,
        cancel_on_set=bool(fields["settime flags"] & abi.TFD_TIMER_CANCEL_ON_SET),
        read_ns=read,
    )


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    if state.clock not in _CLOCKS:
        raise ValueError(f"unknown clock {state.clock!r}")
    fd = abi.timerfd_create(_CLOCKS[state.clock])
    if state.until_ns is not None:
        mode = abi.TFD_TIMER_ABSTIME | abi.TFD_TIMER_CANCEL_ON_SET * state.cancel_on_set
        abi.timerfd_settime(fd, mode, state.until_ns, state.interval_ns)
    elif state.left_ns:
        absolute, value = clocks.arming(
            state.clock, state.left_ns, state.read_ns, time.clock_gettime_ns
        )
        mode = abi.TFD_TIMER_ABSTIME * absolute
        abi.timerfd_settime(fd, mode, value, state.interval_ns)
    if state.ticks:
        fcntl.ioctl(fd, abi.TFD_IOC_SET_TICKS, struct.pack("Q", state.ticks))
    os.set_blocking(fd, not flags.open_flags(file.flags) & os.O_NONBLOCK)
    return fd
