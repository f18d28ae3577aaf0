"""The file system of the upper layer stops dead, as at a power loss: nothing more reaches the disk.

EXT4_IOC_SHUTDOWN without a flush of the journal (fs/ext4/ioctl.c) leaves on the disk what was
written to it so far. The file system is then mounted anew, which replays its journal.
"""

import fcntl
import os
import struct
import threading

import pytest

from tests.kernel.stackfs.conftest import wait_until

pytestmark = [pytest.mark.needs("root", "fuse"), pytest.mark.slow]

SHUTDOWN = 0x8004587D
NOLOGFLUSH = 2
COUNT = 100


def contents(name):
    """Of a lower file: of several blocks, some with more than one copied at a time."""
    return name.encode() * (30_000 if name.endswith("7") else 500)


class Load:
    """Threads that change the pod until its disk stops; and what they know is on it."""

    def __init__(self, root):
        self.root = root
        self.done = 0
        self.durable = set()
        works = (self.copy_up, self.append, self.rename, self.replace)
        self.threads = [threading.Thread(target=self.run, args=(work,)) for work in works]
        for thread in self.threads:
            thread.start()

    def run(self, work):
        for number in range(COUNT):
            try:
                work(number)
            except OSError:
                return
            self.done += 1

    def copy_up(self, number):
        os.chmod(self.root / f"copied{number}", 0o600)

    def append(self, number):
        with open(self.root / f"appended{number}", "ab", buffering=0) as file:
            file.write(b"tail")
            if number % 2:
                os.fsync(file.fileno())
                self.durable.add(f"appended{number}")

    def rename(self, number):
        os.rename(self.root / f"dir{number}", self.root / f"moved{number}")
        if number % 5 == 0:
            self.sync_root()
            self.durable.add(f"moved{number}")

    def replace(self, number):
        with open(self.root / f"new{number}", "xb", buffering=0) as file:
            file.write(b"new" * 5000)
            os.fsync(file.fileno())
        os.rename(self.root / f"new{number}", self.root / f"replaced{number}")
        if number % 5 == 0:
            self.sync_root()
            self.durable.add(f"replaced{number}")

    def sync_root(self):
        fd = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def populate(lower):
    for kind in ("copied", "appended", "replaced"):
        for number in range(COUNT):
            (lower / f"{kind}{number}").write_bytes(contents(f"{kind}{number}"))
    for number in range(COUNT):
        (lower / f"dir{number}").mkdir()
        (lower / f"dir{number}/f").write_text(str(number))


def verify(root, durable):
    for number in range(COUNT):
        name = f"copied{number}"
        assert (root / name).read_bytes() == contents(name)
        name = f"appended{number}"
        found, lower = (root / name).read_bytes(), contents(name)
        assert found[: len(lower)] == lower
        # Of what was not synced ext4 may know the size alone.
        assert found[len(lower) :] == b"tail" or (
            name not in durable and len(found) <= len(lower) + 4
        )
        name = f"replaced{number}"
        found = (root / name).read_bytes()
        assert found == b"new" * 5000 or (name not in durable and found == contents(name))
        places = [at for at in (f"dir{number}", f"moved{number}") if (root / at).exists()]
        assert places == [f"moved{number}"] or (
            f"moved{number}" not in durable and places == [f"dir{number}"]
        )
        assert os.listdir(root / places[0]) == ["f"]
        assert (root / places[0] / "f").read_text() == str(number)


@pytest.mark.parametrize("operations", [30, 250])
def test_power_loss(host, operations):
    """What was synced is there; a copy-up or a rename is whole, or was not made."""
    populate(host.lower)
    disk, image = host.prefix / "disk", host.prefix / "image"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(256 << 20)
    host.run("mkfs.ext4", "-q", image)
    host.run("mount", "-o", "loop", image, disk)
    root = host.mount("pod", "--upper", disk / "upper")
    load = Load(root)
    wait_until(lambda: load.done >= operations)
    durable = set(load.durable)
    fd = os.open(host.seen(disk), os.O_RDONLY)
    fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NOLOGFLUSH))
    os.close(fd)
    for thread in load.threads:
        thread.join()
    host.kill_all()
    host.run("umount", disk)
    wait_until(lambda: not host.run("losetup", "-j", image).stdout)
    host.run("mount", "-o", "loop", image, disk)
    host.stackfs("check", "pod")
    assert os.listdir(host.seen(disk / "work")) == []
    host.stackfs("mount", "pod")
    verify(root, durable)
    host.stackfs("umount", "pod")
    host.run("umount", disk)
