"""Open files of /proc, and the namespaces that are there."""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


mine = os.open("/proc/self/comm", os.O_RDONLY)
os.read(mine, 100)
uptime = os.open("/proc/uptime", os.O_RDONLY)
directory = os.open("/proc/self/fd", os.O_RDONLY)
KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
namespaces = {kind: os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in KINDS}

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert os.read(mine, 100) == b""
assert os.pread(mine, 100, 0) == b"python3\n"
assert float(os.read(uptime, 100).split()[0]) > 0
assert str(mine) in os.listdir(directory)
for kind, fd in namespaces.items():
    assert os.readlink(f"/proc/self/fd/{fd}") == os.readlink(f"/proc/self/ns/{kind}"), kind

print("ok", flush=True)
