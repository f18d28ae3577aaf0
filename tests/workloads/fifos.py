"""Named fifos, with and without a writer."""

import os
import select
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


os.mkfifo("/tmp/fifo")
both = os.open("/tmp/fifo", os.O_RDWR)
reader = os.open("/tmp/fifo", os.O_RDONLY | os.O_NONBLOCK)
os.write(both, b"content")
os.mkfifo("/tmp/quiet")
quiet = os.open("/tmp/quiet", os.O_RDONLY | os.O_NONBLOCK)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert os.read(reader, 100) == b"content"
poll = select.poll()
poll.register(quiet, select.POLLIN)
assert poll.poll(0) == []
writer = os.open("/tmp/quiet", os.O_WRONLY)
os.write(writer, b"x")
os.close(writer)
assert os.read(quiet, 10) == b"x"
assert poll.poll(0)[0][1] & select.POLLHUP

print("ok", flush=True)
