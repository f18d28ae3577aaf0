"""One command at a time works on a pod. Library functions do not lock; commands do.

Programs that are on their way into a pod that runs (launcher.cli) are not in each other's way: they
share the lock, and whoever works on the pod waits for them.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager

from launcher.errors import Locked

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from launcher.places import Places

_PATIENCE_S: Final = 5.0
_PAUSE_S: Final = 0.01
_SHARED: Final = "programs on their way into it"


@contextmanager
def locked(places: Places, name: str) -> Iterator[None]:
    """Hold the lock of pod *name*.

    Raises:
        Locked: somebody else holds it; the text names the process.
        OSError: the lock file cannot be opened.
    """
    places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
    places.run(name).mkdir(mode=0o700, exist_ok=True)
    with held(os.fspath(places.run(name)), name):
        yield


@contextmanager
def held(directory: str, name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock in *directory*, `/run/autopod/POD`, of pod *name* (flock(2)).

    It dies with the process and those that it has forked meanwhile: what a killed command has
    begun is at an end when another one gets the lock. For that is waited, and for those who hold it
    *shared*; for nothing else.

    Raises:
        Locked: somebody else holds it; the text names the process.
        OSError: the lock file cannot be opened.
    """
    fd = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not _try(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            if _lives(holder) or time.monotonic() > deadline:
                raise Locked(f"pod {name!r} is being worked on by {holder or 'another process'}")
            time.sleep(_PAUSE_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{_SHARED if shared else f'process {os.getpid()}'}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def wait_until_free(places: Places, name: str, seconds: float) -> None:
    """Return when nobody works on pod *name*, or after *seconds*."""
    deadline = time.monotonic() + seconds
    while is_locked(places, name) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)


def is_locked(places: Places, name: str) -> bool:
    """Does somebody work on pod *name* at this moment?"""
    try:
        fd = os.open(places.run(name) / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not _try(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(holder: str) -> bool:
    """Does "process PID" still run? One that has not written that yet does; not so _SHARED."""
    return not holder or os.path.exists(f"/proc/{holder.removeprefix('process ')}")
