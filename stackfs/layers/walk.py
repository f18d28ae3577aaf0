"""Walking a layer in one order, through descriptors."""

import os
import stat
from collections.abc import Iterator

from stackfs.layers.whiteout import inside

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Found:
    """A file in a layer.

    Attributes:
        path: from the layer's root; b"." is the root itself.
        status: of the file, a symbolic link not followed.
        dir_fd: its directory, valid until the next file is asked for.
        name: its name there.
    """

    __slots__ = ("dir_fd", "name", "path", "status")

    def __init__(self, path: bytes, dir_fd: int, name: bytes) -> None:
        self.path = path
        self.dir_fd = dir_fd
        self.name = name
        self.status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

    @property
    def proc_path(self) -> bytes:
        """A path to it for calls that take no directory descriptor."""
        return inside(self.dir_fd, self.name)

    def open(self) -> int:
        """Open a regular file for reading; the caller owns the descriptor."""
        return os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.dir_fd)


def walk(root_fd: int, *, directories_only: bool = False) -> Iterator[Found]:
    """Yield everything in a layer: a directory before what is in it, names in their byte order."""
    yield Found(b".", root_fd, b".")
    pending = [b""]
    while pending:
        prefix = pending.pop()
        fd = os.open(prefix or b".", DIRECTORY, dir_fd=root_fd)
        try:
            directories = []
            for name in sorted(_names(fd, directories_only=directories_only)):
                found = Found(prefix + name, fd, name)
                yield found
                if stat.S_ISDIR(found.status.st_mode):
                    directories.append(prefix + name + b"/")
        finally:
            os.close(fd)
        pending.extend(reversed(directories))


def _names(fd: int, *, directories_only: bool) -> list[bytes]:
    if not directories_only:
        return [os.fsencode(name) for name in os.listdir(fd)]
    with os.scandir(fd) as entries:
        return [os.fsencode(at.name) for at in entries if at.is_dir(follow_symlinks=False)]


def open_beneath(fd: int, path: tuple[bytes, ...]) -> int:
    """Open a directory, one component at a time and none through a symbolic link."""
    at = os.dup(fd)
    for name in path:
        try:
            below = os.open(name, DIRECTORY, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def exists(dir_fd: int, name: bytes) -> bool:
    """Is there anything of this name? A symbolic link is, wherever it leads."""
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
