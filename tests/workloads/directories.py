"""A directory that is half read, one that is a descriptor only, and a current directory."""

import ctypes
import os
import signal
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)

libc = ctypes.CDLL(None)


def entries(fd, size):
    """Return the names that one getdents64(2) into *size* bytes gives."""
    buffer = ctypes.create_string_buffer(size)
    length = libc.getdents64(fd, buffer, size)
    assert length >= 0
    names, at = [], 0
    while at < length:
        (record,) = struct.unpack_from("H", buffer, at + 16)
        names.append(buffer.raw[at + 19 : at + record].split(b"\0")[0].decode())
        at += record
    return names


os.mkdir("/tmp/many")
for number in range(200):
    os.mkdir(f"/tmp/many/{number}")
half = os.open("/tmp/many", os.O_RDONLY | os.O_DIRECTORY)
first = entries(half, 1024)
place = os.open("/tmp/many/7", os.O_PATH)
os.chdir("/tmp/many/8")

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})

rest = []
while found := entries(half, 1024):
    rest += found
assert 0 < len(first) < 100
assert sorted(first + rest) == sorted([".", "..", *map(str, range(200))]), (first, rest)
os.mkdir("here", dir_fd=place)
assert os.path.isdir("/tmp/many/7/here")
assert os.getcwd() == "/tmp/many/8"

print("ok", flush=True)
