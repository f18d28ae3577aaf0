"""The lock of a pod, and what a killed command leaves of it."""

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
    with lock.locked(places, "w"):
        pass
    directory = places.run("w")
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
