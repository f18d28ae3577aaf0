"""Files by name: position, flags, sharing after dup and fork, a rename, close-on-exec."""

import fcntl
import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


a = os.open("/tmp/a", os.O_CREAT | os.O_RDWR)
os.write(a, b"0123456789")
os.lseek(a, 3, os.SEEK_SET)
b = os.dup(a)
c = os.open("/tmp/a", os.O_WRONLY | os.O_APPEND | os.O_SYNC)
os.rename("/tmp/a", "/tmp/b")
os.set_inheritable(b, True)
to_child, from_parent = os.pipe()
child = os.fork()
if child == 0:
    os.close(from_parent)
    os.read(to_child, 1)
    os._exit(0 if os.read(a, 2) == b"34" else 1)
os.close(to_child)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


os.write(from_parent, b"x")
assert os.waitpid(child, 0)[1] == 0
assert os.read(b, 2) == b"56"
os.write(c, b"end")
assert os.pread(a, 20, 0) == b"0123456789end"
assert fcntl.fcntl(c, fcntl.F_GETFL) & os.O_SYNC == os.O_SYNC
assert os.path.samestat(os.fstat(a), os.stat("/tmp/b"))
assert os.get_inheritable(b)
assert not os.get_inheritable(a)

print("ok", flush=True)
