"""Locks: flock, ranges of a description, and records of a process; leases."""

import fcntl
import os
import signal
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


for name in ("whole", "range", "record", "read", "written"):
    os.close(os.open(f"/tmp/{name}", os.O_CREAT))
whole = os.open("/tmp/whole", os.O_RDONLY)
fcntl.flock(whole, fcntl.LOCK_EX)
spans = os.open("/tmp/range", os.O_RDWR)
fcntl.fcntl(spans, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 7, 3, 0))
record = os.open("/tmp/record", os.O_RDWR)
fcntl.lockf(record, fcntl.LOCK_EX, 10, 5)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO})
read = os.open("/tmp/read", os.O_RDONLY)
fcntl.fcntl(read, fcntl.F_SETLEASE, fcntl.F_RDLCK)
written = os.open("/tmp/written", os.O_RDWR)
fcntl.fcntl(written, 10, signal.SIGUSR2)  # F_SETSIG
fcntl.fcntl(written, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def seen(path, command):
    """What a newcomer finds locked: kind, start, length."""
    with open(path, "r+") as f:
        raw = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(f, command, raw))
        return kind, start, length, pid


print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


child = os.fork()
if child == 0:
    assert seen("/tmp/record", fcntl.F_GETLK) == (fcntl.F_WRLCK, 5, 10, os.getppid())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert seen("/tmp/range", 36)[:3] == (fcntl.F_WRLCK, 7, 3)
with open("/tmp/whole") as other:
    try:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        raise AssertionError("the flock is gone")
    fcntl.flock(whole, fcntl.LOCK_UN)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

assert not {signal.SIGIO, signal.SIGUSR2} & signal.sigpending()
assert fcntl.fcntl(read, fcntl.F_GETLEASE) == fcntl.F_RDLCK
assert fcntl.fcntl(written, fcntl.F_GETLEASE) == fcntl.F_WRLCK
os.close(os.open("/tmp/read", os.O_RDONLY))
for path, mode, fd, told in (
    ("/tmp/read", os.O_WRONLY, read, signal.SIGIO),
    ("/tmp/written", os.O_RDONLY, written, signal.SIGUSR2),
):
    try:
        os.open(path, mode | os.O_NONBLOCK)
    except BlockingIOError:
        pass
    else:
        raise AssertionError(f"no lease of {path}")
    info = signal.sigtimedwait({told}, 30)
    assert info is not None, f"the holder of the lease of {path} was not told"
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    os.close(os.open(path, mode))

print("ok", flush=True)
