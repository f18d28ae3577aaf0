"""A program whose file was removed, as an upgrade does, and a deleted mapped library."""

import mmap
import os
import shutil
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)

if os.readlink("/proc/self/exe") != "/tmp/deleted/interpreter":
    os.mkdir("/tmp/deleted")
    shutil.copy(sys.executable, "/tmp/deleted/interpreter")
    os.execv("/tmp/deleted/interpreter", ["python3", "-I", __file__])
with open("/tmp/deleted/library", "wb") as file:
    file.write(b"code" * 4096)
with open("/tmp/deleted/library", "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
os.unlink("/tmp/deleted/interpreter")
os.unlink("/tmp/deleted/library")

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})

assert mapped[:8] == b"codecode"
assert os.readlink("/proc/self/exe").endswith(" (deleted)")
assert os.listdir("/tmp/deleted") == []
child = os.fork()
if child == 0:
    os.execv("/proc/self/exe", ["python3", "-c", "raise SystemExit(7)"])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

print("ok", flush=True)
