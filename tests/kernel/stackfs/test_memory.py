"""The daemon's memory: inodes that nothing uses are given up, the others stay what they are."""

import json
import os
import sys

import pytest

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "fuse")

SMALL = """
import sys
from stackfs import cli, inodes
inodes.MAX_IDLE = 500
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def root(host):
    """A stack of 4000 files whose daemon shall hold no more than 500 inodes."""
    for index in range(50):
        directory = host.lower / f"d{index}/e"
        directory.mkdir(parents=True)
        for number in range(80):
            (directory / str(number)).write_text(f"{index} {number}")
    host.run(sys.executable, "-c", SMALL, "mount", "pod", "--lower", os.fspath(host.lower))
    return host.root()


def gauges(host):
    return json.loads(host.stackfs("stats", "pod", "--json").stdout)["gauges"]


def walk(root):
    """Visit everything; return inode number and size by path."""
    found = {}
    for directory, _, files in os.walk(root):
        for name in files:
            status = os.lstat(os.path.join(directory, name))
            found[f"{directory}/{name}"] = status.st_ino, status.st_size
    return found


def test_a_walk_leaves_little_and_changes_nothing(host, root):
    kept = os.open(root / "d7/e/7", os.O_RDWR)
    directory = os.open(root / "d8/e", os.O_RDONLY)
    os.mkdir(root / "new")
    dirty = os.open(root / "new/dirty", os.O_RDWR | os.O_CREAT)
    os.write(dirty, b"not written out yet")
    os.write(kept, b"changed")
    before = walk(root)
    assert len(before) == 4001
    wait_until(lambda: gauges(host)["inodes"] < 1000)
    assert walk(root) == before
    assert os.pread(kept, 99, 0) == b"changed"
    assert os.pread(dirty, 99, 0) == b"not written out yet"
    assert sorted(os.listdir(directory), key=int) == [str(number) for number in range(80)]
    assert os.readlink(f"/proc/self/fd/{kept}").endswith("/d7/e/7")
    wait_until(lambda: gauges(host)["inodes"] < 1000)
    for fd in (kept, directory, dirty):
        os.close(fd)
    assert (host.state() / "upper/new/dirty").read_text() == "not written out yet"
    assert (root / "d49/e/79").read_text() == "49 79"


def test_an_unmount_is_not_in_its_way(host, root):
    """Lazily unmounted, the mount is not at its place any more; programs in it go on."""
    directory = os.open(root, os.O_RDONLY)
    host.stackfs("umount", "--lazy", "pod")
    names = os.listdir(directory)
    assert len(names) == 50
    for name in names:
        assert len(os.listdir(f"/proc/self/fd/{directory}/{name}/e")) == 80
    assert "goes on to remember" in host.log()
    assert os.path.exists(f"/proc/self/fd/{directory}/d0/e/0")
    os.close(directory)
