"""The work directory: where things are made before they get their name, in one atomic step."""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from stackfs.layers.walk import DIRECTORY


@dataclass(slots=True)
class Work:
    """The work directory beside an upper layer, on its file system and mount.

    Attributes:
        fd: its descriptor, owned by whoever made this.
    """

    fd: int
    _made: int = 0
    _prepared: dict[int, bytes] = field(default_factory=dict)

    def name(self) -> bytes:
        """Return a name that nothing in the work directory has."""
        self._made += 1
        return b"%d" % self._made

    @contextlib.contextmanager
    def temporary(self) -> Iterator[bytes]:
        """Yield a new name; whatever still has it afterwards is removed."""
        name = self.name()
        try:
            yield name
        finally:
            remove(self.fd, name)

    def keep_prepared(self, number: int, name: bytes) -> None:
        """Keep *name* as a copy of the contents of inode *number*, for its copy-up."""
        self._prepared[number] = name

    def take_prepared(self, number: int, name: bytes) -> bool:
        """Give the prepared copy of inode *number*, if there is one, another name."""
        prepared = self._prepared.pop(number, None)
        if prepared is None:
            return False
        os.rename(prepared, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        return True

    def clear(self) -> list[str]:
        """Remove what an interrupted daemon left; return a line on each."""
        return [self._clear(name) for name in leftovers(self.fd)]

    def clear_own(self) -> None:
        """Remove what a daemon left that used this directory before, and nothing else."""
        for name in leftovers(self.fd):
            if name.isdigit():
                remove(self.fd, name)

    def _clear(self, name: bytes) -> str:
        remove(self.fd, name)
        return f"removed half-made {os.fsdecode(name)!r} from the work directory"


def leftovers(work_fd: int) -> list[bytes]:
    """Return the names in a work directory."""
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work_fd)
    try:
        return sorted(os.fsencode(name) for name in os.listdir(fd))
    finally:
        os.close(fd)


def remove(dir_fd: int, name: bytes) -> None:
    """Remove a file or a whole directory, if it is there."""
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        _remove_tree(dir_fd, name)
    else:
        os.unlink(name, dir_fd=dir_fd)


def _remove_tree(dir_fd: int, name: bytes) -> None:
    """Remove a directory of any depth, with one descriptor and no recursion.

    `levels` holds the directories still to be removed in each directory on the way down.
    """
    fd, left = _emptied(dir_fd, name)
    levels = [left]
    while True:
        if levels[-1]:
            at, left = _emptied(fd, levels[-1][-1])
            levels.append(left)
        else:
            levels.pop()
            if not levels:
                break
            at = os.open(b"..", DIRECTORY, dir_fd=fd)
            os.rmdir(levels[-1].pop(), dir_fd=at)
        os.close(fd)
        fd = at
    os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def _emptied(dir_fd: int, name: bytes) -> tuple[int, list[bytes]]:
    """Remove the files of a directory; return its descriptor and its subdirectories."""
    fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
    left = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                left.append(os.fsencode(entry.name))
            else:
                os.unlink(entry.name, dir_fd=fd)
    return fd, left
