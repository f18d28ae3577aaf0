"""Watched files: numbers, masks, and no event of the restart itself."""

import ctypes
import os
import signal
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


libc = ctypes.CDLL(None)
os.mkdir("/tmp/watched")
file = os.open("/tmp/watched/file", os.O_CREAT | os.O_RDWR)
fd = libc.inotify_init1(os.O_NONBLOCK)
gone = libc.inotify_add_watch(fd, b"/tmp", 0x100)
one = libc.inotify_add_watch(fd, b"/tmp/watched/file", 0xFFF)
libc.inotify_rm_watch(fd, gone)
os.read(fd, 4096)
other = libc.inotify_add_watch(fd, b"/tmp/watched", 0x100)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


try:
    raise AssertionError(f"an event came of the restart: {os.read(fd, 4096)!r}")
except BlockingIOError:
    pass
os.write(file, b"x")
os.mkdir("/tmp/watched/new")
data = os.read(fd, 4096)
assert struct.unpack_from("iI", data) == (one, 0x2), data
assert struct.unpack_from("iI", data, 16) == (other, 0x40000100), data
third = libc.inotify_add_watch(fd, b"/tmp", 0x100)
assert third not in {one, other}

print("ok", flush=True)
