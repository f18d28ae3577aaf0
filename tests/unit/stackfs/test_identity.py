"""The identity of a layer: what changes it, what does not, and its cache."""

import os
import shutil
import stat
import subprocess
import time

import pytest

from stackfs.layers import identity as module
from stackfs.layers.identity import identity

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def layer(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOPOD_PREFIX", os.fspath(tmp_path / "prefix"))
    top = tmp_path / "layer"
    (top / "d").mkdir(parents=True)
    (top / "d/f").write_text("contents")
    (top / "g").write_text("contents")
    os.link(top / "g", top / "h")
    (top / "s").symlink_to("d")
    os.mkfifo(top / "p")
    os.mknod(top / "n", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(top / "g", "user.a", b"1")
    return top


def copy(layer, to):
    subprocess.run(["cp", "-a", layer, to], check=True)
    return to


def test_place_and_time_do_not_matter(layer, tmp_path):
    before = identity(layer)
    other = copy(layer, tmp_path / "other")
    os.utime(other / "d/f", ns=(1, 1))
    os.setxattr(other / "g", "trusted.stackfs.ino", b"5")
    assert identity(other) == before


CHANGES = {
    "contents": lambda top: (top / "d/f").write_text("Contents"),
    "mode": lambda top: os.chmod(top / "d/f", 0o600),
    "owner": lambda top: os.chown(top / "d/f", 1, 0),
    "group": lambda top: os.chown(top / "d/f", 0, 1),
    "name": lambda top: os.rename(top / "d/f", top / "d/F"),
    "place": lambda top: os.rename(top / "d/f", top / "f"),
    "xattr": lambda top: os.setxattr(top / "g", "user.a", b"2"),
    "xattr name": lambda top: os.setxattr(top / "g", "user.b", b"1"),
    "xattr of a directory": lambda top: os.setxattr(top / "d", "user.a", b"1"),
    "link": lambda top: (os.unlink(top / "h"), shutil.copy2(top / "g", top / "h")),
    "target": lambda top: (os.unlink(top / "s"), os.symlink("e", top / "s")),
    "type": lambda top: (os.unlink(top / "p"), (top / "p").touch()),
    "device": lambda top: (os.unlink(top / "n"), os.mknod(top / "n", 0o20600, os.makedev(1, 5))),
    "new file": lambda top: (top / "new").touch(),
    "mode of the root": lambda top: os.chmod(top, 0o700),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_everything_else_does(layer, tmp_path, change):
    before = identity(layer)
    other = copy(layer, tmp_path / "other")
    assert identity(other) == before
    change(other)
    assert identity(other) != before


def test_contents_are_read_once(layer, monkeypatch):
    deadline = time.time_ns() + module._SETTLED_NS
    while time.time_ns() < deadline + 10**7:
        os.sched_yield()
    before = identity(layer)
    read = []
    monkeypatch.setattr(module, "_digest", read.append)
    assert identity(layer) == before
    assert read == []


def test_a_file_just_written_is_read_again(layer, monkeypatch):
    identity(layer)
    real, read = module._digest, []

    def digest(found):
        read.append(found.path)
        return real(found)

    monkeypatch.setattr(module, "_digest", digest)
    (layer / "g").write_text("changed!")
    identity(layer)
    assert b"g" in read


def test_a_damaged_cache_is_not_believed(layer, tmp_path):
    before = identity(layer)
    for path in (tmp_path / "prefix/var/cache/autopod/identity").iterdir():
        path.write_bytes(path.read_bytes()[:-5] + b"x")
    assert identity(layer) == before
