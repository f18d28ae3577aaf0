"""The daemon is killed and replaced; programs notice a pause at most."""

import fcntl
import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stackfs.control import NoAnswer

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "fuse")

LOAD = Path(__file__).with_name("load.py")
KILLS = 10


@pytest.mark.slow
def test_work_goes_on_while_the_daemon_is_killed(host):
    host.mount()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = {}
    for kind in ("names", "contents", "database", "unlinked", "listings"):
        top, mirror = host.root() / kind, host.prefix / f"mirror-{kind}"
        top.mkdir()
        mirror.mkdir()
        inside = os.fspath(host.prefix / "autopod/pod/root" / kind)
        argv = [sys.executable, os.fspath(LOAD), kind, inside, os.fspath(mirror)]
        running[kind] = host.spawn(*argv, text=True, **pipes)
    for kill in range(KILLS):
        wait_until(lambda least=20 + 30 * kill: _answered(host) > least)
        host.kill_daemon()
    for process in running.values():
        process.stdin.write("\n")
        process.stdin.flush()
    ended = {kind: process.communicate(timeout=300) for kind, process in running.items()}
    for kind, (output, errors) in ended.items():
        assert not errors, (kind, errors)
        assert int(output) > 0


def _answered(host):
    """How many requests the daemon of now has answered."""
    return sum(sum(one["buckets"]) for one in host.request("stats")["requests"].values())


@pytest.fixture(params=["kill", "upgrade"])
def replaced(request, host):
    """A way to replace the daemon."""

    def by_upgrade():
        before = host.request("status")
        host.stackfs("upgrade", "pod")
        after = host.request("status")
        assert before["holder"] != after["holder"]
        assert before["pid"] != after["pid"]

    return by_upgrade if request.param == "upgrade" else host.kill_daemon


def test_open_files_stay_through_copy_up_and_renames(host, replaced):
    (host.lower / "d/deep/er").mkdir(parents=True)
    (host.lower / "d/deep/er/f").write_text("lower")
    root = host.mount()
    reader = os.open(root / "d/deep/er/f", os.O_RDONLY)
    directory = os.open(root / "d/deep", os.O_RDONLY)
    number = os.fstat(reader).st_ino
    replaced()
    os.rename(root / "d/deep", root / "moved")
    replaced()
    assert os.read(reader, 99) == b"lower"
    assert os.fstat(reader).st_ino == number
    assert os.listdir(directory) == ["er"]
    (root / "moved/er/f").write_text("upper")
    replaced()
    assert os.pread(reader, 99, 0) == b"upper"
    assert os.fstat(reader).st_ino == number
    for fd in (reader, directory):
        os.close(fd)
    host.stackfs("umount", "pod")


def test_what_has_lost_its_names_stays(host, replaced):
    (host.lower / "l").write_text("linked")
    os.link(host.lower / "l", host.lower / "m")
    (host.lower / "single").write_text("single")
    root = host.mount()
    gone = os.open(root / "gone", os.O_RDWR | os.O_CREAT)
    os.write(gone, b"gone")
    lower = {name: os.open(root / name, os.O_RDONLY) for name in ("l", "single")}
    for name in ("gone", "l", "single"):
        os.unlink(root / name)
    (root / "removed").mkdir()
    removed = os.open(root / "removed", os.O_RDONLY)
    (root / "removed").rmdir()
    held = (gone, *lower.values(), removed)
    before = [(os.fstat(fd).st_ino, os.fstat(fd).st_nlink) for fd in held]
    assert [count for _, count in before] == [0, 1, 0, 0]
    for _ in range(2):
        replaced()
        assert [(os.fstat(fd).st_ino, os.fstat(fd).st_nlink) for fd in held] == before
        assert os.pread(gone, 99, 0) in (b"gone", b"Gone")
        os.pwrite(gone, b"G", 0)
    assert os.read(lower["l"], 99) == b"linked"
    assert os.read(lower["single"], 99) == b"single"
    assert os.listdir(removed) == []
    assert sorted(os.listdir(root)) == ["m"]
    for fd in held:
        os.close(fd)
    host.stackfs("umount", "pod")
    assert os.listdir(host.state() / "work") == []


def test_locks_and_mappings_stay(host, replaced):
    root = host.mount()
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    mapped = os.open(root / "mapped", os.O_RDWR | os.O_CREAT)
    os.ftruncate(mapped, 8192)
    other = os.open(root / "lock", os.O_RDWR)
    with mmap.mmap(mapped, 8192) as memory:
        memory[:5] = b"dirty"
        replaced()
        assert memory[:5] == b"dirty"
        memory.flush()
    assert (root / "mapped").read_bytes()[:5] == b"dirty"
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for fd in (lock, mapped, other):
        os.close(fd)


def test_a_listing_goes_on_where_it_was(host, replaced):
    for number in range(500):
        (host.lower / f"{number:03}").touch()
    root = host.mount()
    found = []
    with os.scandir(root) as entries:
        for index, entry in enumerate(entries):
            found.append(entry.name)
            if index == 10:
                os.unlink(root / "000")
                (root / "0000").touch()
                replaced()
    assert sorted(found) == [f"{number:03}" for number in range(500)]


def test_a_snapshot_and_its_open_files(host, replaced):
    root = host.mount()
    fd = os.open(root / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before")
    os.fsync(fd)
    layer = Path(host.request("snapshot")["layer"]["path"])
    replaced()
    os.pwrite(fd, b"AFTER!", 0)
    os.fsync(fd)
    os.close(fd)
    assert (layer / "f").read_text() == "before"
    assert (root / "f").read_text() == "AFTER!"


def test_a_killed_holder_is_replaced(host):
    (host.lower / "f").write_text("x")
    root = host.mount()
    fd = os.open(root / "f", os.O_RDONLY)
    for _ in range(2):
        before = host.request("status")
        os.kill(before["holder"], signal.SIGKILL)
        wait_until(lambda before=before: _status(host)["pid"] not in before.values())
        host.kill_daemon()
    assert os.pread(fd, 1, 0) == b"x"
    os.close(fd)
    host.stackfs("umount", "pod")


def _status(host):
    """The daemon's answer; it may be ending."""
    while True:
        try:
            return host.request("status")
        except NoAnswer:
            continue


def test_a_program_that_does_not_start_replaces_nothing(host):
    (host.lower / "f").write_text("x")
    root = host.mount()
    fd = os.open(root / "f", os.O_RDONLY)
    before = host.request("status")
    with pytest.raises(NoAnswer):
        host.request("upgrade", program=["/bin/false"])
    after = host.request("status")
    assert after["holder"] == before["holder"]
    assert after["pid"] != before["pid"]
    assert os.pread(fd, 1, 0) == b"x"
    os.close(fd)
    log = host.prefix / "run/autopod/pod/stackfs.log"
    text = log.read_text()
    assert "the new program does not start" in text
    log.write_text(text.replace("ERROR", "expected"))


def test_commands_know_a_daemon_that_is_killed_all_the_time(host):
    """`list`, `check` and `umount` are right at every moment."""
    root = host.mount()
    stop = threading.Event()
    killed = []

    def kill():
        while not stop.is_set():
            try:
                pid = host.request("status")["pid"]
                os.kill(pid, signal.SIGKILL)
            except (NoAnswer, FileNotFoundError, ConnectionRefusedError, ProcessLookupError):
                continue
            killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for number in range(5):
            (root / str(number)).write_text("x")
            assert [one["mounted"] for one in host.list()] == [True]
            assert b"no fault" in host.stackfs("check", "pod").stdout
        host.stackfs("umount", "pod")
    finally:
        stop.set()
        killer.join()
    assert len(killed) > 5
    assert host.list() == []
    assert sorted(os.listdir(host.state() / "upper")) == [str(number) for number in range(5)]
