"""One command at a time works on a pod. Library functions do not lock; commands do."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.errors import Locked
from launcher.places import Places


@contextmanager
def locked(places: Places, name: str) -> Iterator[None]:
    """Hold the lock of pod *name*, `/run/autopod/POD/lock` (flock(2)).

    It dies with the process and those that it has forked meanwhile: what a killed command has
    begun is at an end when another one gets the lock.

    Raises:
        Locked: somebody else holds it; the text names the process.
        OSError: the lock file cannot be opened.
    """
    places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
    places.run(name).mkdir(mode=0o700, exist_ok=True)
    path = places.run(name) / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "another process"
            raise Locked(f"pod {name!r} is being worked on by {holder}") from e
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
