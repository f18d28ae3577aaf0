"""Times that were left, in a pod whose clock runs again before its processes do.

A restart takes a while, which the pod's monotonic clock counts from where it stood at the freeze. A
timer that got all the time that it had left would be late by that while; so what is noted is also
when, by that clock, the time was read.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ckpt.kinds.protocol import Remote

MONOTONIC: Final = time.CLOCK_MONOTONIC
_STEADY: Final = {"monotonic": MONOTONIC, "boottime": 7, "boottime-alarm": 7}  # <linux/time.h>
_WALL: Final = {"realtime", "realtime-alarm", "tai"}


def now_of(host_pid: int) -> int:
    """Return what the monotonic clock of a process of the pod shows, seen from the host.

    At the very end of the call: what is read next is as old as that.
    """
    ahead = ahead_ns(host_pid)
    return time.monotonic_ns() + ahead


def ahead_ns(host_pid: int) -> int:
    """Return by how much that clock is ahead of the host's.

    Source: time_namespaces(7), "/proc/PID/timens_offsets".
    """
    for line in Path(f"/proc/{host_pid}/timens_offsets").read_text().splitlines():
        clock, seconds, nanoseconds = line.split()
        if clock == "monotonic":
            return int(seconds) * 10**9 + int(nanoseconds)
    raise ValueError(f"process {host_pid} has no monotonic clock")


def now_in(remote: Remote, clock: int = MONOTONIC) -> int:
    """Return what *clock* shows in a process."""
    raw = bytearray(16)
    remote.syscall("clock_gettime", clock, raw)
    return int.from_bytes(raw[:8], "little") * 10**9 + int.from_bytes(raw[8:], "little")


def runs_on(clock: str) -> bool:
    """Does *clock* run on when no program does, unlike those of processor time?"""
    return clock in {*_STEADY, *_WALL}


def arming(
    clock: str, left_ns: int, read_ns: int | None, now: Callable[[int], int]
) -> tuple[bool, int]:
    """Return how to arm a timer that had *left_ns* left: is the time absolute, and the time.

    A clock that never jumps takes a point in time, so that periods that have gone by meanwhile are
    counted, too. A time on the wall clock that was not set as a point of it is not to become one.

    Args:
        clock: what the timer runs by; the clocks of processor time stood still.
        left_ns: not 0.
        read_ns: when that was, by the pod's monotonic clock; None if nobody knows.
        now: shows a clock of the pod.
    """
    if read_ns is None or not runs_on(clock):
        return False, left_ns
    if clock == "monotonic":
        return True, read_ns + left_ns
    left_now = left_ns + read_ns - now(MONOTONIC)
    if clock in _STEADY:
        return True, now(_STEADY[clock]) + left_now
    return False, max(left_now, 1)
