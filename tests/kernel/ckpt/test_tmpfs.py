"""Contents of a pod's tmpfs through collector and workshop."""

import os

import pytest

from tests.kernel.ckpt.roundtrip import libc, refusals, roundtrip
from tests.kernel.ckpt.test_files import at

pytestmark = pytest.mark.needs("root")


@pytest.mark.parametrize("above", [[], ["a"]])
def test_a_tmpfs_that_another_mount_hides_is_in_the_way(above):
    """Whether its path leads somewhere above, or nowhere."""

    def setup():
        os.makedirs("/dev/shm/a/b")
        libc.mount(b"any", b"/dev/shm/a/b", b"tmpfs", 0, None)
        libc.mount(b"any", b"/dev/shm/a", b"tmpfs", 0, None)
        for _ in above:
            os.mkdir("/dev/shm/a/b")

    (found,) = refusals(setup, mounts=True)
    assert found.what == "the tmpfs that is mounted on /dev/shm/a/b"
    assert found.why == "another mount hides what is in it"


def test_shared_memory_files_come_back():
    def setup():
        os.chmod("/dev/shm", 0o1777)
        os.mkdir("/dev/shm/dir", 0o750)
        at(os.open("/dev/shm/dir/file", os.O_CREAT | os.O_RDWR, 0o640), 10)
        os.ftruncate(10, 10 << 20)
        os.pwrite(10, b"end", (10 << 20) - 3)
        os.fchown(10, 33, 34)
        os.link("/dev/shm/dir/file", "/dev/shm/link")
        os.symlink("dir/file", "/dev/shm/symlink")
        os.mkfifo("/dev/shm/fifo", 0o600)
        at(os.open("/dev/shm/gone", os.O_CREAT | os.O_RDWR), 11)
        os.write(11, b"ghost")
        os.unlink("/dev/shm/gone")
        os.setxattr("/dev/shm/dir", b"user.\xff", b"value")
        for depth in range(1, 1500):
            os.mkdir("/dev/shm/dir" + "/d" * depth)
        os.utime("/dev/shm/dir", ns=(10**18, 10**18 + 1))

    def check(_):
        assert sorted(os.listdir("/dev/shm")) == ["dir", "fifo", "link", "symlink"]
        assert os.stat("/dev/shm").st_mode & 0o7777 == 0o1777
        assert os.stat("/dev/shm/dir").st_mode & 0o7777 == 0o750
        assert os.stat("/dev/shm/dir").st_mtime_ns == 10**18 + 1
        assert os.getxattr("/dev/shm/dir", b"user.\xff") == b"value"
        assert os.path.isdir("/dev/shm/dir" + "/d" * 1499)
        stat = os.stat("/dev/shm/symlink")
        assert os.path.samestat(stat, os.fstat(10))
        assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (33, 34, 0o640)
        assert (stat.st_nlink, stat.st_blocks) == (2, 8)
        assert os.pread(10, 10, (10 << 20) - 3) == b"end"
        assert os.pread(11, 10, 0) == b"ghost"

    roundtrip(setup, check, mounts=True)
