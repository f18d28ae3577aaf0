"""Files without a name: shared by opens and mappings, sparse, removed directories."""

import mmap
import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


os.mkdir("/tmp/unlinked")
a = os.open("/tmp/unlinked/gone", os.O_CREAT | os.O_RDWR, 0o640)
os.ftruncate(a, 8 << 20)
os.pwrite(a, b"middle", 4 << 20)
os.fchown(a, 33, 34)
b = os.open("/tmp/unlinked/gone", os.O_RDONLY)
shared = mmap.mmap(a, 8 << 20)
os.unlink("/tmp/unlinked/gone")
m = os.open("/tmp/unlinked/mail.tmp", os.O_CREAT | os.O_WRONLY)
os.link("/tmp/unlinked/mail.tmp", "/tmp/unlinked/mail")
os.unlink("/tmp/unlinked/mail.tmp")
os.mkdir("/tmp/unlinked/dir")
os.chdir("/tmp/unlinked/dir")
d = os.open("/tmp/unlinked/dir", os.O_RDONLY)
os.rmdir("/tmp/unlinked/dir")
os.makedirs("/tmp/unlinked/tree/branch")
leaf = os.open("/tmp/unlinked/tree/branch/leaf", os.O_CREAT | os.O_RDWR)
os.unlink("/tmp/unlinked/tree/branch/leaf")
branch = os.open("/tmp/unlinked/tree/branch", os.O_RDONLY)
os.removedirs("/tmp/unlinked/tree/branch")
old = os.open("/tmp/unlinked/again", os.O_CREAT | os.O_RDWR)
os.write(old, b"old")
with open("/tmp/unlinked/new", "w") as new:
    new.write("new")
os.rename("/tmp/unlinked/new", "/tmp/unlinked/again")
os.symlink("nowhere", "/tmp/unlinked/link")
os.chown("/tmp/unlinked/link", 33, 34, follow_symlinks=False)
link = os.open("/tmp/unlinked/link", os.O_PATH | os.O_NOFOLLOW)
os.unlink("/tmp/unlinked/link")
nameless = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
os.write(nameless, b"draft")
names = sorted(os.listdir("/tmp/unlinked"))


def links():
    """The names that /proc shows."""
    return [os.readlink(f"/proc/self/{file}") for file in ("cwd", *(f"fd/{n}" for n in opened))]


opened = (a, b, d, leaf, branch, link)
shown = links()
before = os.stat("/tmp/unlinked").st_mtime_ns, os.fstat(a).st_blocks

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert sorted(os.listdir("/tmp/unlinked")) == names
assert (os.stat("/tmp/unlinked").st_mtime_ns, os.fstat(a).st_blocks) == before, os.fstat(a)
assert links() == shown, links()
assert os.pread(old, 10, 0) == b"old"
with open("/tmp/unlinked/again") as new:
    assert new.read() == "new"
assert os.readlink(f"/proc/self/fd/{old}").endswith(" (deleted)")
assert os.listdir("/dev/shm") == []
os.link(f"/proc/self/fd/{nameless}", "/dev/shm/named", src_dir_fd=nameless)  # it follows
with open("/dev/shm/named") as named:
    assert named.read() == "draft"
assert os.readlink(b"", dir_fd=link) == b"nowhere"
assert (os.fstat(link).st_nlink, os.fstat(link).st_uid, os.fstat(link).st_gid) == (0, 33, 34)
assert os.pread(b, 6, 4 << 20) == b"middle"
shared[:3] = b"new"
assert os.pread(b, 3, 0) == b"new"
os.pwrite(a, b"back", 100)
assert shared[100:104] == b"back"
stat = os.fstat(b)
assert (stat.st_nlink, stat.st_size, stat.st_uid, stat.st_gid) == (0, 8 << 20, 33, 34)
os.write(m, b"letter")
assert os.stat("/tmp/unlinked/mail").st_size == 6
assert os.listdir(d) == []
try:
    os.open("x", os.O_CREAT)
except FileNotFoundError:
    pass
else:
    raise AssertionError("the removed directory takes files")

print("ok", flush=True)
