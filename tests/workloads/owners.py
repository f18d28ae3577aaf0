"""Who is signalled when a file becomes ready."""

import fcntl
import os
import signal
import socket
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN + 5})
a, b = socket.socketpair()
fcntl.fcntl(b, 10, signal.SIGRTMIN + 5)
fcntl.fcntl(b, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(b, fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert fcntl.fcntl(b, fcntl.F_GETOWN) == os.getpid()
assert signal.sigpending() == set()
a.send(b"x")
found = signal.sigwaitinfo({signal.SIGRTMIN + 5})
assert found.si_signo == signal.SIGRTMIN + 5

print("ok", flush=True)
