"""A file of a lower layer is copied to the upper one when it is first changed."""

import os
import socket
import stat
import threading

import pytest

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "fuse")


def test_copy_up_keeps_everything(host):
    file = host.lower / "d/file"
    file.parent.mkdir(mode=0o750)
    file.write_bytes(b"contents")
    os.chown(file, 7, 8)
    os.chmod(file, 0o4710)
    os.setxattr(file, "user.a", b"1\0\xff")
    os.setxattr(file, "trusted.b", b"2")
    host.run("setfacl", "-m", "u:5:rwx", file)
    host.run("setfacl", "-d", "-m", "g:6:r", file.parent)
    os.utime(file, ns=(10**18 + 1, 10**18 + 2))
    os.utime(file.parent, ns=(10**18 + 3, 10**18 + 4))
    before = os.stat(file)
    root = host.mount()
    seen = os.stat(root / "d/file")
    os.chmod(root / "d/file", stat.S_IMODE(before.st_mode))
    after = os.stat(root / "d/file")
    copy = host.state() / "upper/d/file"
    assert copy.read_bytes() == b"contents"
    for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_nlink", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field), field
        assert getattr(os.stat(copy), field) == getattr(before, field), field
    assert (after.st_ino, after.st_dev) == (seen.st_ino, seen.st_dev)
    assert os.getxattr(root / "d/file", "user.a") == b"1\0\xff"
    for path in ("d/file", "d"):
        acl = host.run("getfacl", "-pcn", host.lower / path).stdout
        assert host.run("getfacl", "-pcn", host.prefix / "autopod/pod/root" / path).stdout == acl
    assert os.stat(root / "d").st_mtime_ns == 10**18 + 4
    assert os.stat(host.state() / "upper/d").st_mtime_ns == 10**18 + 4


def test_every_type_is_copied_up(host):
    lower = host.lower
    (lower / "link").symlink_to("nowhere")
    os.mkfifo(lower / "fifo", 0o640)
    os.mknod(lower / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(lower / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    with socket.socket(socket.AF_UNIX) as at:
        at.bind(os.fspath(lower / "socket"))
    root = host.mount()
    for name in os.listdir(lower):
        os.chown(root / name, 3, 4, follow_symlinks=False)
        old, new, copy = (os.lstat(top / name) for top in (lower, root, host.state() / "upper"))
        assert (old.st_mode, old.st_rdev) == (new.st_mode, new.st_rdev)
        assert (copy.st_mode, copy.st_rdev, copy.st_uid) == (old.st_mode, old.st_rdev, 3)
    assert os.readlink(host.state() / "upper/link") == "nowhere"
    with open(root / "null", "wb") as null:
        null.write(b"gone")


def test_holes_stay_holes(host):
    with open(host.lower / "sparse", "wb") as file:
        file.truncate(64 << 20)
        file.seek(40 << 20)
        file.write(b"x" * 5000)
    root = host.mount()
    with open(root / "sparse", "r+b") as file:
        file.write(b"y")
        os.fsync(file.fileno())
    copy = host.state() / "upper/sparse"
    assert os.stat(copy).st_blocks < 1000
    with open(root / "sparse", "rb") as file:
        assert file.read(1) == b"y"
        file.seek(40 << 20)
        assert file.read(5001) == b"x" * 5000 + b"\0"


def test_names_of_one_file_stay_together(host):
    (host.lower / "a").write_text("one")
    (host.lower / "d").mkdir()
    os.link(host.lower / "a", host.lower / "d/b")
    root = host.mount()
    with open(root / "d/b", "a") as file:
        file.write(" two")
    assert (root / "a").read_text() == "one two"
    assert os.stat(root / "a").st_ino == os.stat(root / "d/b").st_ino
    assert os.stat(root / "a").st_nlink == 2
    os.unlink(root / "a")
    assert os.stat(root / "d/b").st_nlink == 1
    host.kill_all()
    host.stackfs("mount", "pod")
    assert (root / "d/b").read_text() == "one two"
    assert (host.lower / "a").read_text() == "one"


@pytest.mark.slow
def test_other_requests_go_on_while_a_big_file_is_copied(host):
    """Two writers of one big lower file, and readers of another, all at once."""
    size = 200 << 20
    with open(host.lower / "big", "wb") as file:
        file.writelines(os.urandom(1 << 12) * 256 for _ in range(size >> 20))
    (host.lower / "small").write_text("s")
    root = host.mount()

    def write(offset):
        with open(root / "big", "r+b") as file:
            file.seek(offset)
            file.write(b"mark")

    writers = [threading.Thread(target=write, args=(at,)) for at in (0, size - 4)]
    for writer in writers:
        writer.start()
    answered = 0
    while any(writer.is_alive() for writer in writers):
        assert os.listdir(root)
        answered += 1
    for writer in writers:
        writer.join()
    assert answered > 2  # one that waits for the copy is answered once
    with open(root / "big", "rb") as new, open(host.lower / "big", "rb") as old:
        assert new.read(4) == b"mark"
        old.seek(4)
        while piece := old.read(1 << 20):
            other = new.read(len(piece))
            assert other == piece or (len(piece) < 1 << 20 and other.endswith(b"mark"))
    wait_until(lambda: os.listdir(host.state() / "work") == [])


def test_a_file_that_is_removed_is_not_copied(host):
    (host.lower / "d").mkdir()
    for number in range(20):
        (host.lower / f"d/{number}").write_text("contents")
    root = host.mount()
    for number in range(20):
        os.unlink(root / f"d/{number}")
    assert os.listdir(root / "d") == []
    assert host.request("stats")["counters"]["copy_ups"] == 1  # the directory, for its whiteouts
    with open(root / "d/new", "w") as file:
        os.unlink(root / "d/new")
        os.utime(file.fileno(), ns=(1, 2))
        assert os.fstat(file.fileno()).st_mtime_ns == 2


def test_a_disk_without_room_for_a_copy(host):
    """Who writes hears of it at the latest when the cache of writes is written out."""
    (host.lower / "big").write_bytes(bytes(2 << 20))
    (host.lower / "small").write_text("a")
    small = host.prefix / "small"
    small.mkdir()
    host.run("mount", "-t", "tmpfs", "-o", "size=1m", "none", small)
    root = host.mount("pod", "--upper", small / "upper")
    fd = os.open(root / "big", os.O_RDWR)
    os.pwrite(fd, b"x", 0)
    with pytest.raises(OSError, match="No space"):
        os.fsync(fd)
    with pytest.raises(OSError, match="No space"):
        os.close(fd)
    with pytest.raises(OSError, match="No space"):
        os.truncate(root / "big", 1 << 20)
    with open(root / "small", "a") as file:
        file.write("b")
    host.stackfs("umount", "pod")
    assert (host.lower / "big").read_bytes() == bytes(2 << 20)
    assert host.seen(small / "upper/small").read_text() == "ab"
    assert not host.seen(small / "upper/big").exists()
