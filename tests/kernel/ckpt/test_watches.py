"""inotify through collector and workshop."""

import os
import struct

import pytest

from ckpt.kinds import abi
from tests.kernel.ckpt.roundtrip import refusals, roundtrip
from tests.kernel.ckpt.test_files import at

pytestmark = pytest.mark.needs("root")
IN_MODIFY, IN_OPEN, IN_CREATE = 0x2, 0x20, 0x100
IN_ALL = 0xFFF


def events(fd):
    data, found = os.read(fd, 4096), []
    while data:
        number, mask, _, length = struct.unpack_from("iIII", data)
        found.append((number, mask, data[16 : 16 + length].rstrip(b"\0")))
        data = data[16 + length :]
    return found


def test_watches_keep_their_numbers_and_hear_nothing_of_the_restart(tmp_path):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()

    def setup():
        at(abi.inotify_init(), 10)
        os.set_blocking(10, False)
        first = abi.inotify_add_watch(10, os.fsencode(tmp_path), IN_CREATE)
        number = abi.inotify_add_watch(10, os.fsencode(tmp_path / "file"), IN_ALL)
        libc_remove(10, first)
        os.read(10, 4096)
        third = abi.inotify_add_watch(10, os.fsencode(tmp_path / "directory"), IN_CREATE)
        at(os.open(tmp_path / "file", os.O_RDWR), 11)
        os.read(10, 4096)
        return number, third

    def check(numbers):
        file, directory = numbers
        with pytest.raises(BlockingIOError):
            os.read(10, 4096)
        os.write(11, b"x")
        (tmp_path / "directory/new").touch()
        assert events(10) == [(file, IN_MODIFY, b""), (directory, IN_CREATE, b"new")]

    roundtrip(setup, check)


def libc_remove(fd, number):
    import ctypes

    ctypes.CDLL(None).inotify_rm_watch(fd, number)


def test_unread_events_are_refused(tmp_path):
    def setup():
        at(abi.inotify_init(), 10)
        abi.inotify_add_watch(10, os.fsencode(tmp_path), IN_CREATE)
        (tmp_path / "new").touch()

    (refusal,) = refusals(setup, look=False)
    assert refusal.why == "events wait in it that were not read"
