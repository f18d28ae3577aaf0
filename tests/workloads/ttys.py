"""A session whose members have only /dev/tty open, in the middle of a job."""

import os
import pty
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)

started_r, started_w = os.pipe()
leader, master = pty.fork()
if leader == 0:
    tty = os.open("/dev/tty", os.O_RDWR)
    for fd in range(3):
        os.close(fd)
    member = os.fork()
    os.write(started_w, b"x")
    signal.sigwait({signal.SIGUSR1})
    if member == 0:
        os.write(tty, b"member\n")
        os._exit(0)
    os.write(tty, b"leader\n")
    os.kill(member, signal.SIGUSR1)
    status = os.waitpid(member, 0)[1]
    os._exit(0 if status == 0 and os.tcgetpgrp(tty) == os.getpid() else 1)
for _ in range(2):
    os.read(started_r, 1)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})

os.kill(leader, signal.SIGUSR1)
shown = b""
while shown.count(b"\n") < 2:
    shown += os.read(master, 100)
assert shown == b"leader\r\nmember\r\n", shown
assert os.waitpid(leader, 0)[1] == 0

print("ok", flush=True)
