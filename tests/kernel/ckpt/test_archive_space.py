"""A file system that is full: said so, nothing left."""

import errno
import os

import pytest

from launcher import abi
from tests.unit.ckpt import archives

SIZE = 8 << 20


@pytest.fixture
def small(tmp_path):
    """A file system of 8 MiB."""
    abi.mount("tmpfs", os.fspath(tmp_path), "tmpfs", 0, f"size={SIZE}")
    yield tmp_path
    abi.umount2(os.fspath(tmp_path))


@pytest.mark.needs("root", "mount_ns")
def test_no_space_left(small):
    path = small / "x.pod"
    archives.make(path)
    before, free = path.read_bytes(), os.statvfs(small).f_bavail
    with pytest.raises(OSError, match=r"x\.pod") as caught:
        archives.make(path, pages=os.urandom(4 * SIZE))
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(small) == ["x.pod"]
    assert path.read_bytes() == before
    assert os.statvfs(small).f_bavail == free
