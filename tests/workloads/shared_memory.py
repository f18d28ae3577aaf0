"""Files of /dev/shm: contents, names, mappings."""

import mmap
import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


os.mkdir("/dev/shm/dir", 0o750)
fd = os.open("/dev/shm/dir/segment", os.O_CREAT | os.O_RDWR, 0o640)
os.ftruncate(fd, 4 << 20)
segment = mmap.mmap(fd, 4 << 20)
segment[1 << 20 : (1 << 20) + 4] = b"data"
os.close(fd)
os.link("/dev/shm/dir/segment", "/dev/shm/link")
gone = os.open("/dev/shm/gone", os.O_CREAT | os.O_RDWR)
os.write(gone, b"ghost")
os.unlink("/dev/shm/gone")
nameless = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
os.write(nameless, b"nameless")

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert sorted(os.listdir("/dev/shm")) == ["dir", "link"]
assert os.stat("/dev/shm/dir").st_mode & 0o777 == 0o750
fd = os.open("/dev/shm/link", os.O_RDWR)
assert os.pread(fd, 4, 1 << 20) == b"data"
os.pwrite(fd, b"more", 0)
assert segment[:4] == b"more"
assert os.fstat(fd).st_nlink == 2
assert os.pread(gone, 10, 0) == b"ghost"
assert os.pread(nameless, 10, 0) == b"nameless"

print("ok", flush=True)
