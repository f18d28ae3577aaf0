"""Timers, signals, processes, memory as files; locks and owners; through collector and workshop."""

import fcntl
import mmap
import os
import select
import signal
import stat
import struct
import time

import pytest

from ckpt.kinds import abi
from tests.kernel.ckpt.roundtrip import refusals, roundtrip
from tests.kernel.ckpt.test_files import at

pytestmark = pytest.mark.needs("root")
SECOND = 10**9


def test_timers():
    def setup():
        at(abi.timerfd_create(time.CLOCK_MONOTONIC), 10)
        abi.timerfd_settime(10, 0, 100 * SECOND, 7 * SECOND)
        at(abi.timerfd_create(time.CLOCK_BOOTTIME), 11)
        at(abi.timerfd_create(time.CLOCK_REALTIME), 12)
        deadline = time.time_ns() + 1000 * SECOND
        abi.timerfd_settime(12, abi.TFD_TIMER_ABSTIME, deadline, 0)
        at(abi.timerfd_create(time.CLOCK_MONOTONIC), 13)
        abi.timerfd_settime(13, 0, 1, 0)
        at(abi.timerfd_create(time.CLOCK_MONOTONIC), 14)
        abi.timerfd_settime(14, 0, 1, 1000 * SECOND)
        select.select([13], [], [])
        select.select([14], [], [])
        os.set_blocking(11, False)
        return deadline

    def check(deadline):
        left, interval = abi.timerfd_gettime(10)
        assert 90 * SECOND < left <= 100 * SECOND
        assert interval == 7 * SECOND
        assert abi.timerfd_gettime(11) == (0, 0)
        with pytest.raises(BlockingIOError):
            os.read(11, 8)
        # Another process may run between two calls, not each time.
        found = [time.time_ns() + abi.timerfd_gettime(12)[0] - deadline for _ in range(50)]
        assert min(map(abs, found)) < SECOND // 10
        assert os.read(13, 8) == struct.pack("Q", 1)
        assert os.read(14, 8) == struct.pack("Q", 1)
        left, interval = abi.timerfd_gettime(14)
        assert 900 * SECOND < left <= 1000 * SECOND == interval

    roundtrip(setup, check)


def test_signalfd():
    def setup():
        mask = 1 << signal.SIGUSR1 - 1 | 1 << 39
        at(abi.signalfd(mask), 10)
        os.set_blocking(10, False)

    def check(_):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, 40])
        for number in (signal.SIGUSR1, 40):
            os.kill(os.getpid(), number)
        found = {struct.unpack_from("I", os.read(10, 128))[0] for _ in range(2)}
        assert found == {signal.SIGUSR1, 40}
        with pytest.raises(BlockingIOError):
            os.read(10, 128)

    roundtrip(setup, check)


def test_memfd_is_shared_and_sealed():
    def setup():
        at(os.memfd_create("some name", os.MFD_ALLOW_SEALING), 10)
        os.ftruncate(10, 1 << 20)
        os.pwrite(10, b"content", 4096)
        os.lseek(10, 5, os.SEEK_SET)
        fcntl.fcntl(10, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | 0x10)
        at(os.open("/proc/self/fd/10", os.O_RDONLY), 11)
        at(os.memfd_create("unsealable", 0), 12)

    def check(_):
        assert os.readlink("/proc/self/fd/10") == "/memfd:some name (deleted)"
        assert os.lseek(10, 0, os.SEEK_CUR) == 5
        assert os.pread(11, 7, 4096) == b"content"
        assert fcntl.fcntl(10, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | 0x10
        assert fcntl.fcntl(12, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SEAL
        assert os.fstat(10).st_blocks == 8
        with pytest.raises(PermissionError):
            mmap.mmap(10, 4096)

    roundtrip(setup, check)


def test_pidfd_watched_by_an_epoll():
    def setup():
        at(os.pidfd_open(os.getpid(), os.O_NONBLOCK), 10)
        epoll = select.epoll()
        epoll.register(10, select.EPOLLIN)
        os.dup2(epoll.fileno(), 11)

    # The check's process has another pid than the dumped one, which is dead: say so to the kernel.
    def check(_):
        raise AssertionError("not reached")

    with pytest.raises(RuntimeError, match="No such process"):
        roundtrip(setup, check)


def test_file_of_a_process():
    def setup():
        at(os.open("/proc/1/stat", os.O_RDONLY), 10)
        os.read(10, 2)
        at(os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY), 11)
        at(os.open("/proc/meminfo", os.O_RDONLY), 12)
        os.close(11)

    def check(_):
        assert os.read(10, 1) == b"("
        assert os.readlink("/proc/self/fd/10") == "/proc/1/stat"
        assert os.read(12, 9) == b"MemTotal:"

    roundtrip(setup, check)


def test_what_no_kind_knows_is_refused(tmp_path):
    def setup():
        path = os.fsencode(tmp_path) + b"/\x1b[1m\xff"  # must not reach a person's terminal
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 11))  # kmsg
        at(os.open(path, os.O_RDONLY), 10)

    (refusal,) = refusals(setup)
    assert refusal.what == rf"descriptor 10 ({tmp_path}/\x1b[1m\udcff)"


def locks_of_others(path, kind):
    """What a newcomer sees locked: its start and length."""
    fd = os.open(path, os.O_RDWR)
    try:
        raw = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        found = struct.unpack("hhqqi4x", fcntl.fcntl(fd, kind, raw))
    finally:
        os.close(fd)
    return None if found[0] == fcntl.F_UNLCK else found[2:4]


def test_locks(tmp_path):
    record, ofd, whole = (tmp_path / name for name in ("record", "ofd", "whole"))
    for path in (record, ofd, whole):
        path.touch()

    def setup():
        at(os.open(record, os.O_RDONLY), 9)
        at(os.open(record, os.O_RDWR), 10)
        fcntl.lockf(10, fcntl.LOCK_EX, 10, 5)
        at(os.open(ofd, os.O_RDWR), 11)
        fcntl.fcntl(11, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 7, 0, 0))
        at(os.open(whole, os.O_RDONLY), 12)
        fcntl.flock(12, fcntl.LOCK_EX)

    def check(_):
        child = os.fork()
        if not child:
            # F_GETLK as another process; F_OFD_GETLK as another description
            seen = locks_of_others(record, fcntl.F_GETLK), locks_of_others(ofd, 36)
            os._exit(0 if seen == ((5, 10), (7, 0)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        with open(whole) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(12, fcntl.LOCK_UN)

    roundtrip(setup, check)


def test_lease_whose_end_somebody_waits_for_is_refused(tmp_path):
    (tmp_path / "file").touch()

    def setup():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
        at(os.open(tmp_path / "file", os.O_RDONLY), 10)
        fcntl.fcntl(10, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        with pytest.raises(BlockingIOError):
            os.open(tmp_path / "file", os.O_WRONLY | os.O_NONBLOCK)

    (refusal,) = refusals(setup)
    assert refusal.why == "somebody waits for the end of its lease"


def test_owner_and_signal():
    # O_ASYNC stays off: the group is that of the whole test run.
    def setup():
        r, w = os.pipe()
        at(r, 10)
        at(w, 11)
        fcntl.fcntl(10, 10, 40)  # F_SETSIG
        fcntl.fcntl(10, abi.F_SETOWN_EX, struct.pack("ii", abi.F_OWNER_PGRP, os.getpgrp()))
        return os.getpgrp()

    def check(group):
        assert fcntl.fcntl(10, 11) == 40
        raw = fcntl.fcntl(10, abi.F_GETOWN_EX, bytes(8))
        assert struct.unpack("ii", raw) == (abi.F_OWNER_PGRP, group)

    roundtrip(setup, check)
