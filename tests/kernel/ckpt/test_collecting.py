"""What the collector promises: it finds what is shared, however much, and changes nothing."""

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import time
from pathlib import Path

import pytest

from ckpt.kinds import abi
from tests.kernel.ckpt.roundtrip import REPORT, Pages, collect, in_child, read_report
from tests.kernel.ckpt.test_files import at

pytestmark = pytest.mark.needs("root")


def test_descriptions_are_told_apart_across_processes(tmp_path):
    """Two processes share a description, and each has its own of the same file."""
    (tmp_path / "file").touch()

    def body(report):
        take_standard_streams()
        shared = at(os.open(tmp_path / "file", os.O_RDWR), 10)
        eventfds = [at(os.eventfd(0), number) for number in range(60, 80)]
        child = os.fork()
        if not child:
            os.close(REPORT)
        at(os.open(tmp_path / "file", os.O_RDWR), 11)
        os.dup2(eventfds[7], 50)
        if child:
            report((child, shared, eventfds))
        os.kill(os.getpid(), signal.SIGSTOP)

    pid, fd = in_child(body)
    child = 0
    try:
        child, shared, eventfds = read_report(fd)
        os.waitpid(pid, os.WUNTRACED)
        wait_until_stopped(child)
        files = collect(pid, child)
        one, other = ({d.fd: d.file for d in files.descriptors[p]} for p in (pid, child))
        assert one[shared] == other[shared]
        assert one[11] != other[11]
        assert [one[n] for n in eventfds] == [other[n] for n in eventfds]
        assert len({one[n] for n in eventfds}) == 20
        assert one[50] == other[50] == one[eventfds[7]]
    finally:
        for number in (child, pid):
            if number:
                os.kill(number, signal.SIGKILL)
        os.waitpid(pid, 0)


def take_standard_streams():
    for number in range(3):
        at(os.open("/dev/null", os.O_RDWR), number)


def wait_until_stopped(pid):
    deadline = time.monotonic() + 60
    while b") T " not in Path(f"/proc/{pid}/stat").read_bytes():
        assert time.monotonic() < deadline


def is_locked(path):
    """Does another process find a record lock?"""
    child = os.fork()
    if not child:
        with contextlib.suppress(BlockingIOError):
            fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_nothing_changes(tmp_path):
    """After a collection the process goes on and finds everything as it left it."""
    (tmp_path / "file").write_text("0123456789")

    def body(report):
        take_standard_streams()
        file = os.open(tmp_path / "file", os.O_RDWR)
        os.lseek(file, 4, os.SEEK_SET)
        fcntl.lockf(file, fcntl.LOCK_EX)
        r, w = os.pipe()
        os.write(w, b"content")
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for message in (b"one", b"two"):
            a.send(message)
        c, d = socket.socketpair()
        c.send(b"stream")
        timer = abi.timerfd_create(time.CLOCK_MONOTONIC)
        abi.timerfd_settime(timer, 0, 1, 0)
        select.select([timer], [], [])
        counter = os.eventfd(3)
        os.kill(os.getpid(), signal.SIGSTOP)
        assert os.read(file, 3) == b"456"
        assert os.read(r, 100) == b"content"
        assert [b.recv(100, socket.MSG_PEEK) for _ in range(2)] == [b"one", b"one"]
        assert [b.recv(100) for _ in range(2)] == [b"one", b"two"]
        assert [d.recv(100, socket.MSG_PEEK), d.recv(100)] == [b"stream", b"stream"]
        assert os.read(timer, 8) == b"\1" + bytes(7)
        assert os.eventfd_read(counter) == 3
        assert is_locked(tmp_path / "file")
        report(None)

    pid, fd = in_child(body)
    try:
        os.waitpid(pid, os.WUNTRACED)
        found = collect(pid, store=Pages().store).refusals
        assert [r for r in found if f"descriptor {REPORT} " not in r.what] == []
        os.kill(pid, signal.SIGCONT)
        read_report(fd)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_thousands_of_descriptors():
    count = 3000

    def body(report):
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        take_standard_streams()
        for _ in range(count):
            os.eventfd(0)
        report(None)
        os.kill(os.getpid(), signal.SIGSTOP)

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid, fd = in_child(body)
    try:
        read_report(fd)
        os.waitpid(pid, os.WUNTRACED)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        files = collect(pid)
        assert len({d.file for d in files.descriptors[pid]}) == count + 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_hundreds_of_connections():
    count = 400

    def body(report):
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        take_standard_streams()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(b"\0many")
        listener.listen(count)
        kept = []
        for _ in range(count):
            client = socket.socket(socket.AF_UNIX)
            client.connect(b"\0many")
            client.send(b"x")
            kept += [client, listener.accept()[0]]
        report(None)
        os.kill(os.getpid(), signal.SIGSTOP)

    pid, fd = in_child(body)
    try:
        read_report(fd)
        os.waitpid(pid, os.WUNTRACED)
        files = collect(pid, store=Pages().store)
        assert files.refusals == []
        assert len(files.objects) == count
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
