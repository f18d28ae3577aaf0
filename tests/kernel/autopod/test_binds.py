"""binds.source() on real mounts; the session's mount namespace is private."""

import contextlib
import subprocess

import pytest

from autopod import binds

pytestmark = pytest.mark.needs("root", "namespaces")


@pytest.fixture
def mounted(tmp_path):
    with contextlib.ExitStack() as undo:

        def mount(*arguments):
            subprocess.run(["mount", *arguments], check=True)
            undo.callback(subprocess.run, ["umount", arguments[-1]], check=True)

        yield mount


@pytest.fixture
def point(tmp_path):
    point = tmp_path / "autopod/exim/root"
    point.mkdir(parents=True)
    return point


def test_a_bound_directory(tmp_path, point, mounted):
    base = tmp_path / "my pod"
    base.mkdir()
    mounted("-o", "bind", base, point)
    assert binds.source(point) == base


def test_a_directory_of_a_mounted_file_system(tmp_path, point, mounted):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted("-t", "tmpfs", "none", disk)
    (disk / "pod").mkdir()
    mounted("-o", "bind", disk / "pod", point)
    assert binds.source(point) == disk / "pod"


def test_the_topmost_of_two(tmp_path, point, mounted):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        mounted("-o", "bind", tmp_path / name, point)
    assert binds.source(point) == tmp_path / "two"


def test_nothing_mounted(point):
    assert binds.source(point) is None
    assert binds.source(point / "missing") is None


def test_a_covered_name_is_not_believed(tmp_path, point, mounted):
    base = tmp_path / "base"
    base.mkdir()
    mounted("-o", "bind", base, point)
    mounted("-t", "tmpfs", "none", base)
    with pytest.raises(binds.BindError, match="has no other name"):
        binds.source(point)


def test_a_file_system_mounted_only_there(point, mounted):
    mounted("-t", "tmpfs", "none", point)
    with pytest.raises(binds.BindError):
        binds.source(point)
