"""Timers as files: time left, interval, unread expirations, the wall clock."""

import ctypes
import os
import signal
import struct
import sys
import time

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


libc = ctypes.CDLL(None)
SECOND = 10**9


def timer(clock, flags, value, interval):
    fd = libc.timerfd_create(clock, os.O_NONBLOCK)
    new = (ctypes.c_long * 4)(*divmod(interval, SECOND), *divmod(value, SECOND))
    assert libc.timerfd_settime(fd, flags, new, None) == 0
    return fd


def left(fd):
    now = (ctypes.c_long * 4)()
    assert libc.timerfd_gettime(fd, now) == 0
    return now[2] + now[3] / SECOND


periodic = timer(time.CLOCK_MONOTONIC, 0, 10_000 * SECOND, 3 * SECOND)
expired = timer(time.CLOCK_MONOTONIC, 0, 1, 0)
deadline = time.time_ns() + 50_000 * SECOND
wall = timer(time.CLOCK_REALTIME, 1, deadline, 0)
point = timer(time.CLOCK_MONOTONIC, 1, time.monotonic_ns() + 2_000 * SECOND, 0)
until = time.monotonic() + 2_000
relative = timer(time.CLOCK_BOOTTIME, 0, 2_000 * SECOND, 0)
since = time.monotonic() + 2_000
soon = timer(time.CLOCK_BOOTTIME, 0, SECOND // 2, 0)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert 5_000 < left(periodic) <= 10_000
assert os.read(expired, 8) == struct.pack("Q", 1)
# Another process may run between two calls, not each time.
assert min(abs(left(wall) - (deadline / SECOND - time.time())) for _ in range(50)) < 0.05
# The restart took longer than that: the time that a timer had left was running meanwhile.
assert min(abs(left(point) - (until - time.monotonic())) for _ in range(50)) < 0.005
assert min(abs(left(relative) - (since - time.monotonic())) for _ in range(50)) < 0.005
assert left(soon) <= 0.5
os.set_blocking(soon, True)
assert os.read(soon, 8) == struct.pack("Q", 1)

print("ok", flush=True)
