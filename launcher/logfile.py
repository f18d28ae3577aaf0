"""A pod's log: written by its programs themselves, cut by its holder, read by people.

Programs have the file open for appending, whatever becomes of us; so it stays where it is. When it
has grown too long its beginning is copied to `log.1` (and what was there to `log.2`, …), and taken
off the file in one step, while programs go on writing behind it: no line is lost. File systems that
cannot do that (tmpfs, btrfs) have the file truncated instead, and what is written in that moment is
lost. `log.cut` says how much has been taken off in all, so that a reader finds its place again.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from launcher.config import Log
from launcher.places import Places

_FALLOC_FL_COLLAPSE_RANGE: Final = 0x08  # <linux/falloc.h>
_PAUSE_S: Final = 0.1
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def rotate(places: Places, name: str, settings: Log) -> bool:
    """Cut the log of pod *name* if it has grown longer than its configuration allows.

    Returns:
        Was it?

    Raises:
        OSError: it could not be; the log is whole.
    """
    path = places.log(name)
    with contextlib.suppress(FileNotFoundError), _locked(path.parent, fcntl.LOCK_EX):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            at = os.fstat(fd)
            length = (at.st_size - 1) // at.st_blksize * at.st_blksize
            if settings.size_bytes is None or at.st_size <= settings.size_bytes or length <= 0:
                return False
            _keep_copy(fd, path, length, settings.keep)
            _write(path.with_suffix(".cut"), str(_cut(path) + _take_off(fd, length)))
            return True
        finally:
            os.close(fd)
    return False


def parts(places: Places, name: str) -> list[Path]:
    """Return the files of the log of pod *name*, the oldest first."""
    path = places.log(name)
    numbers = [int(old.suffix[1:]) for old in path.parent.glob("log.*") if old.suffix[1:].isdigit()]
    return [path.with_suffix(f".{n}") for n in sorted(numbers, reverse=True)] + [path]


def follow(places: Places, name: str) -> Iterator[bytes]:
    """Return what is appended to the log of pod *name* from its present beginning on, for ever.

    What has been cut off meanwhile is read from the copies, as long as these are kept.
    """
    path = places.log(name)
    place = None
    while True:
        text = b""
        with contextlib.suppress(FileNotFoundError), _locked(path.parent, fcntl.LOCK_SH):
            place = _cut(path) if place is None else place
            part, start = _part_at(places, name, place)
            with part.open("rb") as file:
                begin = max(0, place - start)
                if begin > os.fstat(file.fileno()).st_size:  # another file: the pod was replaced
                    begin = 0
                file.seek(begin)
                text = file.read(1 << 20)
                place = start + begin + len(text)
        if text:
            yield text
        else:
            time.sleep(_PAUSE_S)


def _part_at(places: Places, name: str, place: int) -> tuple[Path, int]:
    """Return the file with the byte *place* of all that was ever written, and its first byte's."""
    *old, newest = parts(places, name)
    part, start = newest, _cut(newest)
    while place < start and old:
        part = old.pop()
        start -= part.stat().st_size
    return part, start


@contextlib.contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    """Hold a lock of the directory: the log itself is open in programs that could lock it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _cut(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.with_suffix(".cut").read_text())
    return 0


def _keep_copy(fd: int, path: Path, length: int, keep: int) -> None:
    """Copy the first *length* bytes to `log.1`, and move older copies on; the last one goes."""
    new = path.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as copy:
        done = 0
        while done < length:
            done += os.copy_file_range(fd, copy.fileno(), length - done, done)
    for number in range(keep, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path.with_suffix(f".{number - 1}"), path.with_suffix(f".{number}"))
    os.replace(new, path.with_suffix(".1"))


def _take_off(fd: int, length: int) -> int:
    """Take *length* bytes off the beginning of the file; return how many it were."""
    if _libc.fallocate(fd, _FALLOC_FL_COLLAPSE_RANGE, 0, length) == 0:
        return length
    number = ctypes.get_errno()
    if number not in {errno.EOPNOTSUPP, errno.EINVAL}:
        raise OSError(number, f"fallocate: {os.strerror(number)}")
    size = os.fstat(fd).st_size
    os.ftruncate(fd, 0)
    return size


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".cut.new")
    new.write_text(text)
    os.replace(new, path)
