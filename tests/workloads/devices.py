"""Character devices, and /dev/tty-less standard streams."""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


null = os.open("/dev/null", os.O_RDWR)
zero = os.open("/dev/zero", os.O_RDONLY | os.O_NONBLOCK)
full = os.open("/dev/full", os.O_WRONLY)
urandom = os.open("/dev/urandom", os.O_RDONLY)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert os.read(null, 1) == b""
assert os.read(zero, 4) == bytes(4)
assert len(os.read(urandom, 64)) == 64
assert not os.get_blocking(zero)
try:
    os.write(full, b"x")
except OSError:
    pass
else:
    raise AssertionError("the full device took a byte")
assert os.readlink("/proc/self/fd/0") == "/dev/null"

print("ok", flush=True)
