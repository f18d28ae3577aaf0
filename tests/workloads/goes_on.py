"""A restarted process does all that a process does: fork, execve, threads, memory, files."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def deep(n):
    return deep(n - 1) + 1 if n else 0


run = subprocess.run(
    [sys.executable, "-c", "import os; print(os.getppid())"], capture_output=True, check=False
)
results = []
threads = [
    threading.Thread(target=lambda: results.append(len(bytearray(1 << 24)))) for _ in range(8)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
got = []
signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
signal.raise_signal(signal.SIGUSR2)
with open("/tmp/new file", "w") as file:
    file.write("x" * 100000)
problems = [
    what
    for what, right in {
        "a child program": run.stdout.decode().strip() == str(os.getpid()),
        "threads": results == [1 << 24] * 8,
        "a signal handler": got == [1],
        "deep recursion": deep(900) == 900,
        "a file": os.path.getsize("/tmp/new file") == 100000,
        "its name": os.readlink("/proc/self/exe").startswith("/usr/bin/python3"),
        "its arguments": Path("/proc/self/cmdline").read_text().startswith("/usr/bin/python3\0"),
    }.items()
    if not right
]
print("fail: " + ", ".join(problems) if problems else "ok", flush=True)
