"""What the books of an instance have in common: replaced in one step, and one writer at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from launcher.places import Places


def write(path: Path, book: msgspec.Struct | None) -> None:
    """Replace the book at *path* in one step, durably; None is no file."""
    if book is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(book), indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


@contextmanager
def locked(places: Places, name: str) -> Iterator[None]:
    """Hold a lock of the instance, `/run/autopod/NAME.lock` (flock(2))."""
    places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(places.runs() / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
