"""A process that SIGSTOP or SIGTSTP holds stays held, and goes on with SIGCONT."""

import os
import signal
import sys
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def held(number):
    """Return a process that the signal has stopped, and a pipe that it fills when it runs."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)  # one that is not orphaned: to those SIGTSTP does nothing
        while True:
            os.write(write_fd, b".")
            signal.sigtimedwait({signal.SIGUSR1}, 0.001)
    os.read(read_fd, 1)
    os.kill(pid, number)
    os.waitpid(pid, os.WUNTRACED)
    os.set_blocking(read_fd, False)
    while True:
        try:
            os.read(read_fd, 4096)
        except BlockingIOError:
            return pid, read_fd


numbers = [signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN]
processes = [held(number) for number in numbers]
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


def check(condition, what):
    if not condition:
        print(f"fail: {what}", flush=True)
        for pid, _ in processes:
            os.kill(pid, signal.SIGKILL)
        sys.exit(1)


for number, (pid, read_fd) in zip(numbers, processes, strict=True):
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    check(state == "T", f"state {state}")
    status = os.waitpid(pid, os.WUNTRACED)[1]
    check(os.WSTOPSIG(status) == number, f"stopped by {os.WSTOPSIG(status)}, not {number}")
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
