"""A pseudo-terminal inside the pod: settings, size, session, foreground group."""

import fcntl
import os
import pty
import signal
import struct
import sys
import termios

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


ready_r, ready_w = os.pipe()
child, master = pty.fork()
if child == 0:
    settings = termios.tcgetattr(0)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, settings)
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        signal.sigwait({signal.SIGUSR1})
        tty = os.open("/dev/tty", os.O_RDWR)
        os.write(tty, os.read(tty, 100).upper())
        os._exit(0 if os.tcgetpgrp(tty) == os.getpgrp() else 1)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    while os.getpgid(job) != job:
        pass
    os.tcsetpgrp(0, job)
    os.write(ready_w, struct.pack("i", job))
    os._exit(os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]))
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
(job,) = struct.unpack("i", os.read(ready_r, 4))
name = os.readlink(f"/proc/{child}/fd/0")

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert os.readlink(f"/proc/{child}/fd/0") == name
slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
assert struct.unpack("4H", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2] == (33, 77)
assert not termios.tcgetattr(slave)[3] & termios.ECHO
os.close(slave)
os.write(master, b"typed\n")
os.kill(job, signal.SIGUSR1)
shown = b""
while not shown.endswith(b"\n"):
    shown += os.read(master, 100)
assert shown == b"TYPED\r\n"
assert os.waitpid(child, 0)[1] == 0

print("ok", flush=True)
