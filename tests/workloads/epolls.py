"""Event polls: data, modes, moved and nested targets, one shared with a child."""

import ctypes
import os
import select
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


inner, outer = select.epoll(), select.epoll()
once, edge, moved = os.eventfd(1), os.eventfd(0), os.eventfd(0)
inner.register(once, select.EPOLLIN | select.EPOLLONESHOT)
outer.register(inner.fileno(), select.EPOLLIN)
outer.register(edge, select.EPOLLIN | select.EPOLLET)
outer.register(moved, select.EPOLLIN)
old = moved
moved = os.dup(old)
os.close(old)
signals = ctypes.CDLL(None).signalfd(-1, ctypes.byref(ctypes.c_uint64(1 << signal.SIGUSR2 - 1)), 0)
by_signal = select.epoll()
by_signal.register(signals, select.EPOLLIN)
child = os.fork()
if child == 0:
    signal.sigwait({signal.SIGUSR1})
    os._exit(0 if (edge, select.EPOLLIN) in outer.poll(10) else 1)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert outer.poll(0) == [(inner.fileno(), select.EPOLLIN)]
assert inner.poll(0) == [(once, select.EPOLLIN)]
assert inner.poll(0) == outer.poll(0) == []
os.eventfd_write(moved, 1)
assert outer.poll(0) == [(old, select.EPOLLIN)]
os.eventfd_read(moved)
assert by_signal.poll(0) == []
os.kill(os.getpid(), signal.SIGUSR2)
assert by_signal.poll(10) == [(signals, select.EPOLLIN)]
os.eventfd_write(edge, 1)
os.kill(child, signal.SIGUSR1)
assert os.waitpid(child, 0)[1] == 0

print("ok", flush=True)
