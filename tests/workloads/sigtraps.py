"""SIGTRAP as programs have it: ignored, handled, blocked, waiting for a thread, for a process."""

import os
import signal
import sys
import threading
from pathlib import Path

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)
FIELDS = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
TRAP = 1 << signal.SIGTRAP - 1


def status(task):
    """Return in which of the sets of signals of a thread SIGTRAP is."""
    lines = Path(f"/proc/self/task/{task}/status").read_text().splitlines()
    sets = dict(line.split(":", 1) for line in lines)
    return {name for name in FIELDS if int(sets[name], 16) & TRAP}


def wait():
    gate.wait()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})
    signal.pthread_kill(threading.get_ident(), signal.SIGTRAP)
    gate.wait()
    gate.wait()
    found.append(signal.sigtimedwait({signal.SIGTRAP}, 0))


caught = []
signal.signal(signal.SIGTRAP, lambda *_: caught.append(signal.SIGTRAP))
pids = []
for blocked in ([], [signal.SIGTRAP]):
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGTRAP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        before = status(os.getpid())
        os.kill(os.getppid(), signal.SIGUSR2)
        signal.sigwait({signal.SIGUSR1})
        os._exit(before != status(os.getpid()))
    signal.sigwait({signal.SIGUSR2})
    pids.append(pid)

gate, found = threading.Barrier(2), []
thread = threading.Thread(target=wait)
thread.start()
gate.wait()
gate.wait()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTRAP})
os.kill(os.getpid(), signal.SIGTRAP)
tasks = [os.getpid(), thread.native_id]
before = [status(task) for task in tasks]

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert [status(task) for task in tasks] == before, [before, *map(status, tasks)]
for pid in pids:
    os.kill(pid, signal.SIGUSR1)
    assert os.waitpid(pid, 0)[1] == 0, f"process {pid}"
gate.wait()
thread.join()
assert found[0].si_pid == os.getpid()
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTRAP})
assert caught == [signal.SIGTRAP]

print("ok", flush=True)
