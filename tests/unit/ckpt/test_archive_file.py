"""An archive appears whole or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from ckpt.archive.newfile import NewFile
from ckpt.archive.write import ArchiveWriter
from ckpt.progress import Silent
from tests.unit.ckpt import archives


def test_nothing_is_left_without_a_commit(tmp_path):
    with ArchiveWriter(tmp_path / "x.pod", archives.KEY, progress=Silent()) as writer:
        writer.pages.add(archives.PAGES * 1000)
    assert os.listdir(tmp_path) == []


def test_what_has_the_name_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x.pod"
    path.write_text("precious")
    with ArchiveWriter(path, archives.KEY, progress=Silent()) as writer:
        writer.set_model(archives.MODEL)
        assert path.read_text() == "precious"
        writer.commit()
    archives.read_all(path)
    assert os.listdir(tmp_path) == ["x.pod"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["gone/x.pod", "file/x.pod", "directory"])
def test_places_where_no_archive_can_be(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match=name) as caught:
        ArchiveWriter(tmp_path / name, archives.KEY, progress=Silent()).__enter__()
    assert caught.value.errno in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


def test_only_a_regular_file_is_replaced(tmp_path):
    """`-o /dev/null` replaced the host's, and `-o /dev/stdout` would have the link to it."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(os.listdir(tmp_path))
    for name in ("fifo", "link", "dangling"):
        with pytest.raises(OSError, match=f"Not a regular file.*{name}") as caught:
            NewFile(tmp_path / name)
        assert caught.value.filename == os.fspath(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_name_of_any_length(tmp_path):
    archives.make(tmp_path / ("x" * 255))
    archives.make(tmp_path / ("x" * 255))
    assert os.listdir(tmp_path) == ["x" * 255]


def test_a_file_system_without_nameless_files(tmp_path, monkeypatch):
    """There the file has a hidden name meanwhile; the rest is the same."""
    real_open = os.open

    def without(path, flags, *rest, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return real_open(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", without)
    file = NewFile(tmp_path / "x")
    assert len(os.listdir(tmp_path)) == 1
    file.discard()
    assert os.listdir(tmp_path) == []
    archives.make(tmp_path / "x.pod")
    archives.read_all(tmp_path / "x.pod")
    assert os.listdir(tmp_path) == ["x.pod"]


KILLED = """
import itertools, os, sys, time
from pathlib import Path
from ckpt.archive.write import ArchiveWriter
from ckpt.progress import Silent
from tests.unit.ckpt import archives
with ArchiveWriter(Path(sys.argv[1]), archives.KEY, progress=Silent()) as writer:
    for number in itertools.count():
        writer.pages.add(b"".join(archives.page(1024 * number + n) for n in range(1024)))
        if os.lseek(writer._file.fd, 0, os.SEEK_END) > 100_000:
            print("ready", flush=True)
            time.sleep(60)
"""


def test_killed_while_writing(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path / "x.pod"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []
