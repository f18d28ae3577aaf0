"""Signals read from a file."""

import ctypes
import os
import signal
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


libc = ctypes.CDLL(None)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGRTMIN + 3})
mask = (ctypes.c_uint64 * 16)(1 << signal.SIGUSR2 - 1 | 1 << signal.SIGRTMIN + 2)
fd = libc.signalfd(-1, mask, os.O_NONBLOCK)
os.kill(os.getpid(), signal.SIGUSR2)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert struct.unpack_from("I", os.read(fd, 128))[0] == signal.SIGUSR2
os.kill(os.getpid(), signal.SIGRTMIN + 3)
assert struct.unpack_from("I", os.read(fd, 128))[0] == signal.SIGRTMIN + 3
try:
    os.read(fd, 128)
except BlockingIOError:
    pass
else:
    raise AssertionError("a signal came of nothing")

print("ok", flush=True)
