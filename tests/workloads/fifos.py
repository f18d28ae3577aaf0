"""Named fifos, with and without a writer, and one whose name is gone."""

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
os.mkdir("/tmp/gone")
os.mkfifo("/tmp/gone/fifo", 0o640)
os.chown("/tmp/gone/fifo", 33, 34)
gone_w = os.open("/tmp/gone/fifo", os.O_RDWR)
gone_r = os.open("/tmp/gone/fifo", os.O_RDONLY)
os.write(gone_w, b"kept")
os.unlink("/tmp/gone/fifo")

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
assert os.listdir("/tmp/gone") == []
assert os.readlink(f"/proc/self/fd/{gone_r}") == "/tmp/gone/fifo (deleted)"
stat = os.fstat(gone_r)
assert (stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (0, 33, 34, 0o640)
os.write(gone_w, b"+more")
assert os.read(gone_r, 100) == b"kept+more"

print("ok", flush=True)
