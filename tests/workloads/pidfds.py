"""Descriptors of processes, watched by an epoll."""

import os
import select
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


child = os.fork()
if child == 0:
    signal.sigwait({signal.SIGUSR1})
    os._exit(3)
fd = os.pidfd_open(child)
own = os.pidfd_open(os.getpid())
epoll = select.epoll()
epoll.register(fd, select.EPOLLIN)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert epoll.poll(0) == []
signal.pidfd_send_signal(fd, signal.SIGUSR1)
assert epoll.poll(10) == [(fd, select.EPOLLIN)]
assert os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status == 3
signal.pidfd_send_signal(own, 0)

print("ok", flush=True)
