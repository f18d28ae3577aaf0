"""Memory as files: shared by descriptors and mappings of two processes, sealed."""

import fcntl
import mmap
import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


fd = os.memfd_create("shared", os.MFD_ALLOW_SEALING)
os.ftruncate(fd, 1 << 20)
shared = mmap.mmap(fd, 1 << 20)
shared[5000:5004] = b"data"
private = mmap.mmap(fd, 1 << 20, mmap.MAP_PRIVATE)
private[:3] = b"own"
fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | 0x10)
mapped_only = os.memfd_create("mapped")
os.ftruncate(mapped_only, 4096)
kept = mmap.mmap(mapped_only, 4096)
kept[:4] = b"kept"
os.close(mapped_only)
program = os.memfd_create("program", 0)
os.write(program, b"#!/bin/true")


def execute():
    pid = os.fork()
    if pid == 0:
        os.execve(program, ["program"], {})
    return os.waitpid(pid, 0)[1]


assert execute() == 0
child = os.fork()
if child == 0:
    signal.sigwait({signal.SIGUSR1})
    os._exit(0 if shared[:5] + kept[4:8] == b"hellothis" else 1)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert os.pread(fd, 4, 5000) == b"data"
assert private[:3] == b"own"
assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | 0x10
shared[:5] = b"hello"
assert kept[:4] == b"kept"
kept[4:8] = b"this"
os.kill(child, signal.SIGUSR1)
assert os.waitpid(child, 0)[1] == 0
assert execute() == 0
assert os.lseek(program, 0, os.SEEK_CUR) == len("#!/bin/true")

print("ok", flush=True)
