"""Open files of /proc."""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


mine = os.open("/proc/self/comm", os.O_RDONLY)
os.read(mine, 100)
uptime = os.open("/proc/uptime", os.O_RDONLY)
directory = os.open("/proc/self/fd", os.O_RDONLY)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert os.read(mine, 100) == b""
assert os.pread(mine, 100, 0) == b"python3\n"
assert float(os.read(uptime, 100).split()[0]) > 0
assert str(mine) in os.listdir(directory)

print("ok", flush=True)
