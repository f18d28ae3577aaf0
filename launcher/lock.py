"""One command at a time works on a pod. Library functions do not lock; commands do."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.errors import Locked
from launcher.places import Places

_held: set[int] = set()


def _leave_to_parent() -> None:
    """A child does not hold its parent's locks, which else outlived a parent that is killed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_to_parent)


@contextmanager
def locked(places: Places, name: str) -> Iterator[None]:
    """Hold the lock of pod *name*, `/run/autopod/POD/lock` (flock(2)); dies with the process.

    Raises:
        Locked: somebody else holds it; the text names the process.
        OSError: the lock file cannot be opened.
    """
    places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
    places.run(name).mkdir(mode=0o700, exist_ok=True)
    path = places.run(name) / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    _held.add(fd)
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
        if fd in _held:
            _held.remove(fd)
            os.close(fd)
