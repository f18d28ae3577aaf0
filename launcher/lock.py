"""One command at a time works on a pod. Library functions do not lock; commands do.

Programs that are on their way into a pod that runs (launcher.cli) are not in each other's way: they
share the lock, and whoever works on the pod waits for them.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress

from launcher.errors import Locked

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Final

    from launcher.places import Places

_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_PATIENCE_S: Final = 5.0
_PAUSE_S: Final = 0.01
_SHARED: Final = "programs on their way into it"

_held: Final[dict[str, int]] = {}
"""Descriptors of locked(), by directory."""


@contextmanager
def locked(places: Places, name: str) -> Iterator[None]:
    """Hold the lock of pod *name*.

    A command that leaves nothing of the pod, because there is no such pod, leaves no lock either.

    Raises:
        Locked: somebody else holds it; the text names the process.
        OSError: the lock file cannot be opened.
    """
    directory = places.run(name)
    places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # another one has just taken it away
            fd = _take(os.fspath(directory), name)
            break
    _held[os.fspath(directory)] = fd
    try:
        yield
    finally:
        del _held[os.fspath(directory)]
        _clear(directory)
        os.close(fd)


def descriptors(places: Places, name: str) -> tuple[int, ...]:
    """Return by what this process holds the lock of pod *name*, if it does, by locked().

    A program that it executes and that works on the pod is to inherit it: then it holds the lock,
    too, until it ends.
    """
    fd = _held.get(os.fspath(places.run(name)))
    return () if fd is None else (fd,)


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
    fd = _take(directory, name, shared=shared)
    try:
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
        fd = os.open(places.run(name) / "lock", _FLAGS)
    except FileNotFoundError:
        return False
    try:
        return not _try(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def _take(directory: str, name: str, *, shared: bool = False) -> int:
    """Return a descriptor that holds the lock; see held().

    Who removes a lock file holds the lock. So what was opened before that, and is got after it, is
    the lock of nothing.
    """
    while True:
        fd = os.open(f"{directory}/lock", _FLAGS | os.O_CREAT, 0o600)
        try:
            _await(fd, name, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{_SHARED if shared else f'process {os.getpid()}'}\n".encode(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _await(fd: int, name: str, kind: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not _try(fd, kind):
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        if _lives(holder) or time.monotonic() > deadline:
            raise Locked(f"pod {name!r} is being worked on by {holder or 'another process'}")
        time.sleep(_PAUSE_S)


def _clear(directory: Path) -> None:
    """Remove *directory* unless it has more than the lock, which the caller holds."""
    with suppress(OSError):  # the pod was removed; or somebody has just put something into it
        if os.listdir(directory) == ["lock"]:
            os.unlink(directory / "lock")
            os.rmdir(directory)


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(holder: str) -> bool:
    """Does "process PID" still run? One that has not written that yet does; not so _SHARED."""
    return not holder or os.path.exists(f"/proc/{holder.removeprefix('process ')}")
