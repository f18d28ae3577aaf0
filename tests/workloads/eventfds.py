"""Event counters, plain and as semaphores, one shared with a child that waits."""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


plain = os.eventfd(41, os.EFD_NONBLOCK)
semaphore = os.eventfd(2, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
shared = os.eventfd(0)
child = os.fork()
if child == 0:
    os._exit(os.eventfd_read(shared))

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


os.eventfd_write(plain, 1)
assert os.eventfd_read(plain) == 42
assert os.eventfd_read(semaphore) == os.eventfd_read(semaphore) == 1
try:
    os.eventfd_read(semaphore)
except BlockingIOError:
    pass
else:
    raise AssertionError("the semaphore gave more than it had")
os.eventfd_write(shared, 7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

print("ok", flush=True)
