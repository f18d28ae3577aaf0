"""A process that SIGSTOP holds stays held, and goes on with SIGCONT."""

import os
import signal
import sys
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
read_fd, write_fd = os.pipe()
pid = os.fork()
if pid == 0:
    while True:
        os.write(write_fd, b".")
        signal.sigtimedwait({signal.SIGUSR1}, 0.001)
os.read(read_fd, 1)
os.kill(pid, signal.SIGSTOP)
os.waitpid(pid, os.WUNTRACED)
os.set_blocking(read_fd, False)
while True:
    try:
        os.read(read_fd, 4096)
    except BlockingIOError:
        break
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


def check(condition, what):
    if not condition:
        print(f"fail: {what}", flush=True)
        os.kill(pid, signal.SIGKILL)
        sys.exit(1)


state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
check(state == "T", f"state {state}")
try:
    os.read(read_fd, 4096)
    check(False, "it ran")
except BlockingIOError:
    pass
os.kill(pid, signal.SIGCONT)
os.set_blocking(read_fd, True)
check(os.read(read_fd, 1) == b".", "it does not go on")
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print("ok", flush=True)
