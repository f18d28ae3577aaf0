"""Regular files, devices, pipes, eventfds, epolls through collector and workshop."""

import contextlib
import fcntl
import os
import select

import pytest

from tests.kernel.ckpt.roundtrip import refusals, roundtrip

pytestmark = pytest.mark.needs("root")


def at(fd, number):
    """Move *fd* to *number*."""
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
    return number


def test_regular_file_keeps_position_flags_and_sharing(tmp_path):
    path = tmp_path / "file"
    path.write_text("0123456789")

    def setup():
        at(os.open(path, os.O_RDWR | os.O_APPEND), 10)
        os.lseek(10, 4, os.SEEK_SET)
        os.dup2(10, 12, inheritable=False)
        at(os.open(path, os.O_RDONLY), 13)

    def check(_):
        assert os.lseek(10, 0, os.SEEK_CUR) == 4
        assert fcntl.fcntl(10, fcntl.F_GETFL) & os.O_APPEND
        assert os.read(10, 3) == b"456"
        assert os.read(12, 3) == b"789"
        assert os.read(13, 3) == b"012"
        assert os.get_inheritable(10)
        assert not os.get_inheritable(12)

    roundtrip(setup, check)


def test_renamed_file(tmp_path):
    def setup():
        at(os.open(tmp_path / "old", os.O_CREAT | os.O_WRONLY), 10)
        os.rename(tmp_path / "old", tmp_path / "new (deleted)")

    def check(_):
        os.write(10, b"x")
        assert (tmp_path / "new (deleted)").read_bytes() == b"x"

    roundtrip(setup, check)


def test_file_moved_by_link_and_unlink(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "new").mkdir()

    def setup():
        at(os.open(tmp_path / "tmp/mail", os.O_CREAT | os.O_WRONLY), 10)
        os.link(tmp_path / "tmp/mail", tmp_path / "new/mail")
        os.unlink(tmp_path / "tmp/mail")

    def check(_):
        os.write(10, b"x")
        assert (tmp_path / "new/mail").read_bytes() == b"x"

    roundtrip(setup, check)


def test_unlinked_file_is_shared_by_its_opens(tmp_path):
    def setup():
        at(os.open(tmp_path / "ghost", os.O_CREAT | os.O_RDWR, 0o640), 10)
        os.ftruncate(10, 100 << 20)
        os.pwrite(10, b"middle", 50 << 20)
        os.fchown(10, 33, 34)
        os.setxattr(10, "user.colour", b"blue")
        at(os.open(tmp_path / "ghost", os.O_RDONLY), 11)
        os.utime(10, ns=(10**9, 2 * 10**9))
        os.unlink(tmp_path / "ghost")

    def check(_):
        stat = os.fstat(11)
        assert stat.st_nlink == 0
        assert (stat.st_size, stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (
            100 << 20,
            33,
            34,
            0o640,
        )
        assert stat.st_mtime == 2
        assert stat.st_blocks < 100
        assert os.getxattr(11, "user.colour") == b"blue"
        assert os.pread(11, 6, 50 << 20) == b"middle"
        os.pwrite(10, b"new", 0)
        assert os.pread(11, 3, 0) == b"new"
        assert list(tmp_path.iterdir()) == []

    roundtrip(setup, check)


def test_directories(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "gone").mkdir(mode=0o710)
    for name in ("a", "b", "c"):
        (tmp_path / "kept" / name).touch()

    def setup():
        at(os.open(tmp_path / "kept", os.O_RDONLY | os.O_DIRECTORY), 10)
        at(os.open(tmp_path / "gone", os.O_PATH), 11)
        os.rmdir(tmp_path / "gone")

    def check(_):
        assert sorted(os.listdir(10)) == ["a", "b", "c"]
        assert os.fstat(11).st_mode & 0o777 == 0o710
        with pytest.raises(FileNotFoundError):
            os.open("x", os.O_CREAT, dir_fd=11)

    roundtrip(setup, check)


def test_devices():
    names = ["null", "zero", "full", "random", "urandom"]

    def setup():
        for n, name in enumerate(names):
            at(os.open(f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK), 10 + n)

    def check(_):
        assert os.read(11, 3) == bytes(3)
        with pytest.raises(OSError, match="No space"):
            os.write(12, b"x")
        for n, name in enumerate(names):
            assert os.fstat(10 + n).st_rdev == os.stat(f"/dev/{name}").st_rdev
            assert fcntl.fcntl(10 + n, fcntl.F_GETFL) & os.O_NONBLOCK

    roundtrip(setup, check)


def test_log(tmp_path):
    (tmp_path / "log").write_text("before\n")

    def setup():
        at(os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND), 10)

    def check(_):
        os.write(10, b"after\n")
        assert (tmp_path / "log").read_text() == "before\nafter\n"

    roundtrip(setup, check, log_path=str(tmp_path / "log"))


def test_pipe_with_content_capacity_and_other_descriptions():
    def setup():
        r, w = os.pipe()
        fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 1 << 17)
        at(w, 11)
        at(r, 10)
        at(os.open("/proc/self/fd/10", os.O_RDONLY | os.O_NONBLOCK), 12)
        os.write(11, b"a" * 100_000)

    def check(_):
        assert fcntl.fcntl(10, fcntl.F_GETPIPE_SZ) == 1 << 17
        assert not os.get_blocking(12)
        assert os.get_blocking(10)
        assert os.read(10, 60_000) + os.read(12, 60_000) == b"a" * 100_000
        with pytest.raises(BlockingIOError):
            os.read(12, 1)
        os.close(11)
        assert os.read(10, 1) == b""

    roundtrip(setup, check)


def test_packets():
    def setup():
        r, w = os.pipe2(os.O_DIRECT)
        at(w, 11)
        at(r, 10)
        for packet in (b"one", b"two", b"three"):
            os.write(11, packet)

    def check(_):
        assert [os.read(10, 100) for _ in range(3)] == [b"one", b"two", b"three"]
        assert fcntl.fcntl(11, fcntl.F_GETFL) & os.O_DIRECT

    roundtrip(setup, check)


def test_one_sided_pipes():
    def setup():
        for number, keep in ((10, 0), (11, 1)):
            ends = os.pipe()
            os.write(ends[1], b"rest")
            os.close(ends[1 - keep])
            at(ends[keep], number)

    def check(_):
        assert os.read(10, 10) == b"rest"
        assert os.read(10, 10) == b""
        with pytest.raises(BrokenPipeError):
            os.write(11, b"x")

    roundtrip(setup, check)


def test_pipe_to_the_outside_is_refused():
    r, w = os.pipe()
    try:
        # in_child() closes what it inherits: hand the end over under a number that it leaves.
        def setup():
            pid = os.getppid()
            at(os.open(f"/proc/{pid}/fd/{w}", os.O_WRONLY), 20)

        (refusal,) = refusals(setup)
        assert refusal.what.startswith("descriptor 20 (pipe:[")
        assert refusal.why == "its other end is held outside of the pod"
    finally:
        os.close(r)
        os.close(w)


def test_fifo(tmp_path):
    def setup():
        os.mkfifo(tmp_path / "fifo", 0o600)
        at(os.open(tmp_path / "fifo", os.O_RDWR), 10)
        at(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK), 11)
        os.write(10, b"content")

    def check(_):
        assert os.read(11, 100) == b"content"
        w = os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)
        os.write(w, b"more")
        os.close(w)
        assert os.read(10, 100) == b"more"

    roundtrip(setup, check)


def test_fifo_that_never_had_a_writer(tmp_path):
    def setup():
        os.mkfifo(tmp_path / "fifo")
        at(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK), 11)

    def check(_):
        poll = select.poll()
        poll.register(11, select.POLLIN)
        assert poll.poll(0) == []

    roundtrip(setup, check)


def test_eventfds():
    def setup():
        at(os.eventfd(0), 10)
        at(os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK), 11)
        at(os.eventfd(0), 12)
        os.eventfd_write(12, 2**64 - 2)

    def check(_):
        assert os.eventfd_read(11) == 1
        assert os.eventfd_read(11) == 1
        assert os.eventfd_read(11) == 1
        with pytest.raises(BlockingIOError):
            os.eventfd_read(11)
        assert os.eventfd_read(12) == 2**64 - 2
        os.eventfd_write(10, 7)
        assert os.eventfd_read(10) == 7

    roundtrip(setup, check)


def test_epoll_with_targets_that_moved_and_nested():
    kept = []  # an epoll object that is collected closes its descriptor

    def setup():
        inner, outer = select.epoll(), select.epoll()
        os.dup2(inner.fileno(), 20)
        os.dup2(outer.fileno(), 21)
        inner.close()
        outer.close()
        at(os.eventfd(1), 10)
        inner, outer = select.epoll.fromfd(20), select.epoll.fromfd(21)
        inner.register(10, select.EPOLLIN | select.EPOLLONESHOT)
        outer.register(20, select.EPOLLIN)
        os.dup2(10, 11)
        at(os.eventfd(0), 12)
        outer.register(12, select.EPOLLIN | select.EPOLLET)
        os.dup2(12, 13)  # the entry goes on under number 12,
        at(os.eventfd(0), 12)  # which means another file now
        kept.extend((inner, outer))

    def check(_):
        inner, outer = select.epoll.fromfd(20), select.epoll.fromfd(21)
        assert outer.poll(0) == [(20, select.EPOLLIN)]
        assert inner.poll(0) == [(10, select.EPOLLIN)]
        assert inner.poll(0) == []
        inner.modify(10, select.EPOLLIN)
        os.eventfd_write(13, 1)
        assert (12, select.EPOLLIN) in outer.poll(0)
        with pytest.raises(FileNotFoundError):
            outer.unregister(12)
        with contextlib.suppress(OSError):
            outer.register(12, select.EPOLLIN)

    roundtrip(setup, check)
