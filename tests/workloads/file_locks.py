"""Locks: flock, ranges of a description, and records of a process; leases."""

import fcntl
import os
import re
import signal
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


for name in ("whole", "range", "lent", "left", "record", "read", "written"):
    os.close(os.open(f"/tmp/{name}", os.O_CREAT))
whole = os.open("/tmp/whole", os.O_RDONLY)
fcntl.flock(whole, fcntl.LOCK_EX)
ask, answer = os.pipe()
lent = os.open("/tmp/lent", os.O_RDONLY)
left = os.open("/tmp/left", os.O_RDONLY)
fcntl.flock(left, fcntl.LOCK_SH)
keeper = os.fork()
if keeper == 0:
    fcntl.flock(lent, fcntl.LOCK_EX)
    os.write(answer, b"x")
    signal.pause()
os.read(ask, 1)
os.close(left)
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


def taker(pid, fd):
    """Who has taken the flock: proc_pid_fdinfo(5)."""
    with open(f"/proc/{pid}/fdinfo/{fd}") as info:
        return int(re.search(r"FLOCK +ADVISORY +[A-Z]+ +(\d+) ", info.read())[1])


print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert taker("self", whole) == os.getpid()
assert taker("self", lent) == keeper
with open("/proc/self/uid_map") as users:
    alone = users.read().split()[0:2] == ["0", "0"]
assert taker(keeper, left) == (os.getpid() if alone else 0)
os.kill(keeper, signal.SIGKILL)
os.wait()
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
