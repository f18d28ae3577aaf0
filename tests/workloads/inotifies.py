"""Watched files: numbers, masks, one without a name, and no event of the restart itself."""

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
removed = os.open("/tmp/watched/removed", os.O_CREAT | os.O_RDWR)
fd = libc.inotify_init1(os.O_NONBLOCK)
gone = libc.inotify_add_watch(fd, b"/tmp", 0x100)
one = libc.inotify_add_watch(fd, b"/tmp/watched/file", 0xFFF)
libc.inotify_rm_watch(fd, gone)
last = libc.inotify_add_watch(fd, b"/tmp/watched/removed", 0x2 | 0x400)
os.unlink("/tmp/watched/removed")
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
os.write(removed, b"x")
os.close(removed)
data = os.read(fd, 4096)
told = [struct.unpack_from("iI", data, at) for at in range(0, len(data), 16)]
assert told == [(last, 0x2), (last, 0x400), (last, 0x8000)], told
third = libc.inotify_add_watch(fd, b"/tmp", 0x100)
assert third not in {one, other, last}

print("ok", flush=True)
