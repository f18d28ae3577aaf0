"""Memory as files: shared by descriptors and mappings of two processes, sealed, executed."""

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
program = os.memfd_create("program")
with open("/bin/true", "rb") as true:
    os.write(program, true.read())
fcntl.fcntl(program, fcntl.F_SETFL, os.O_APPEND)
again = os.open(f"/proc/self/fd/{program}", os.O_RDONLY)
of_program = mmap.mmap(program, 4096)
where = os.lseek(program, 0, os.SEEK_CUR)


def run():
    """Execute it: ETXTBSY where somebody has opened it for writing, as memfd_create(2) does not."""
    pid = os.fork()
    if pid == 0:
        os.execve(program, ["true"], {})
    return os.waitpid(pid, 0)[1]


assert run() == 0
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
assert run() == 0
assert fcntl.fcntl(program, fcntl.F_GETFL) & os.O_APPEND
assert os.lseek(program, 0, os.SEEK_CUR) == where
os.pwrite(program, b"x", 0)
assert os.pread(again, 4, 0) == of_program[:4] == b"\x7fELF"
of_program[:1] = b"!"
assert os.pread(again, 4, 0) == b"!ELF"
os.kill(child, signal.SIGUSR1)
assert os.waitpid(child, 0)[1] == 0

print("ok", flush=True)
