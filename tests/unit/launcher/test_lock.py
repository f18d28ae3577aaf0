"""Who holds the lock of a pod."""

import os
import signal

import pytest

from launcher.errors import Locked
from launcher.lock import locked
from launcher.places import Places


def test_one_at_a_time(tmp_path):
    places = Places(tmp_path)
    with locked(places, "a"), locked(places, "b"):
        mine = f"worked on by process {os.getpid()}"
        with pytest.raises(Locked, match=mine), locked(places, "a"):
            pass
    with locked(places, "a"):
        pass


def test_a_child_does_not_hold_its_parents_lock(tmp_path):
    """Neither when the parent has been killed, nor does it give the lock up before."""
    places = Places(tmp_path)
    wait_fd, go_on_fd = os.pipe()
    ready_fd, said_fd = os.pipe()
    parent = os.fork()
    if parent == 0:
        with locked(places, "a"):
            if os.fork() == 0:
                os.write(said_fd, b".")
                os.close(go_on_fd)
                os.read(wait_fd, 1)
                os._exit(0)
            signal.pause()
    os.read(ready_fd, 1)
    with pytest.raises(Locked, match=f"process {parent}"), locked(places, "a"):
        pass
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    with locked(places, "a"):
        pass
    os.close(go_on_fd)
    for fd in (wait_fd, ready_fd, said_fd):
        os.close(fd)
