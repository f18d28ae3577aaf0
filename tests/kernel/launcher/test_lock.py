"""The lock of a pod, and what a killed command leaves of it."""

import contextlib
import os
import signal

import pytest

from launcher import lock
from launcher.errors import Locked


def test_one_at_a_time(places):
    holding = lock.locked(places, "w")
    with holding, pytest.raises(Locked, match=f"process {os.getpid()}"), lock.locked(places, "w"):
        pass


def test_what_a_killed_command_has_begun_is_waited_for(places, monkeypatch):
    """Its child holds the lock a while longer; the next command does not fail for that."""
    told, telling = os.pipe()
    ready, getting_ready = os.pipe()
    command = os.fork()
    if command == 0:
        with lock.locked(places, "w"):
            if os.fork() == 0:
                os.close(telling)
                os.write(getting_ready, b"1")
                os.read(told, 1)  # until the test lets it go
                os._exit(0)
            signal.pause()
    os.read(ready, 1)
    os.kill(command, signal.SIGKILL)
    os.waitpid(command, 0)
    waits = []

    def let_go(seconds):
        waits.append(seconds)
        if len(waits) == 1:
            os.close(telling)

    monkeypatch.setattr(lock.time, "sleep", let_go)
    with lock.locked(places, "w"):
        assert waits
    for fd in (told, ready, getting_ready):
        os.close(fd)


def test_programs_on_their_way_share_it_and_are_waited_for(places, monkeypatch):
    directory = places.run("w")
    directory.mkdir(parents=True)
    waits = []
    first, second = (lock.held(directory, "w", shared=True) for _ in range(2))
    first.__enter__()
    second.__enter__()

    def let_go(seconds):
        waits.append(seconds)
        if len(waits) < 3:
            (first, second)[len(waits) - 1].__exit__(None, None, None)

    monkeypatch.setattr(lock.time, "sleep", let_go)
    with lock.locked(places, "w"):
        assert len(waits) == 2
        holding = lock.held(directory, "w", shared=True)
        with pytest.raises(Locked, match=f"process {os.getpid()}"), holding:
            pass


def test_nothing_is_left_of_what_was_not_there(places):
    with lock.locked(places, "w"):
        assert lock.is_locked(places, "w")
    assert not places.run("w").exists()
    with lock.locked(places, "w"):
        (places.run("w") / "pod.json").touch()
    assert (places.run("w") / "lock").exists()


def test_a_lock_that_was_removed_while_it_was_waited_for_is_not_held(places, monkeypatch):
    directory = places.run("w")
    directory.mkdir(parents=True)
    removing = lock.held(directory, "w", shared=True)
    removing.__enter__()

    def remove(_seconds):
        (directory / "lock").unlink()
        removing.__exit__(None, None, None)

    monkeypatch.setattr(lock.time, "sleep", remove)
    with lock.locked(places, "w"):
        assert lock.is_locked(places, "w")


def test_many_are_at_a_pod_that_is_not_there(places, tmp_path):
    """However they come and go, one holds the lock."""

    def come_and_go():
        held = 0
        while held < 100:
            with contextlib.suppress(Locked), lock.locked(places, "w"):
                os.close(os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL))
                os.unlink(tmp_path / "alone")
                held += 1

    children = []
    for _ in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                come_and_go()
                status = 0
            finally:
                os._exit(status)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert not places.run("w").exists()
