"""One layer of a stack: a directory tree, reached through descriptors only."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stackfs import abi
from stackfs.layers import redirect, whiteout
from stackfs.layers.numbers import inode_number
from stackfs.layers.redirect import Path as Names
from stackfs.layers.union import Kind
from stackfs.layers.walk import walk

DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(eq=False, slots=True)
class Layer:
    """A layer; it owns *fd* as long as the daemon lives.

    Attributes:
        path: where it is, for people.
        fd: O_PATH descriptor of its root directory, in a private copy of its mount.
        number: its part of the inode numbers of its files.
        numbered: whether files in it may carry an inode number of their own.
        writable: whether its files may be changed in place: the upper one, until it is sealed.
        id: as assigned when it was sealed, else None.
        image: of the file that holds it, None for a directory.
    """

    path: Path
    fd: int
    number: int
    numbered: bool = False
    writable: bool = False
    id: str | None = None
    image: os.stat_result | None = None
    device: int = field(init=False)
    _links: dict[tuple[int, int], list[Names]] | None = field(init=False, default=None)
    _moved: dict[Names, Names] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.device = os.fstat(self.fd).st_dev

    def inode_number(self, status: os.stat_result, path: bytes | None) -> int:
        """Return the inode number in the stack of a file of this layer.

        Args:
            status: of the file.
            path: leads to it; None where it is known to carry no number of its own.
        """
        if path is not None and self.numbered:
            own = whiteout.attribute(path, whiteout.NUMBER)
            if own is not None:
                return int(own)
        same = status.st_dev == self.device
        return inode_number(self.number, None if same else status.st_dev, status.st_ino)

    def links(self, status: os.stat_result) -> list[Names]:
        """Return every path in this sealed layer that leads to one file.

        To be asked about a file with several links, or one whose name is not known. The first
        call walks the whole layer and remembers the files that have several links; one that has
        one is looked for.
        """
        wanted = (status.st_dev, status.st_ino)
        if status.st_nlink == 1:
            return [path for key, _, path in self._files() if key == wanted]
        if self._links is None:
            self._links = {}
            for key, count, path in self._files():
                if count > 1:
                    self._links.setdefault(key, []).append(path)
        return self._links.get(wanted, [])

    def lift(self, path: Names) -> Names:
        """Return where a file of the layers below is seen through this one, if nothing hides it.

        The first call walks a layer in which directories may have moved.
        """
        return redirect.lift(self._known_moves(), path)

    def _known_moves(self) -> dict[Names, Names]:
        if self._moved is None:
            self._moved = redirect.moved(self.fd) if self._may_have_moves() else {}
        return self._moved

    def _may_have_moves(self) -> bool:
        marked = whiteout.attribute(whiteout.inside(self.fd, b"."), whiteout.MOVED) is not None
        return marked or not self.numbered

    def note_redirect(self, former: Names, path: Names) -> None:
        """Note that the directory at *path* is about to be moved without its files.

        Args:
            former: its path in what the layers below show.
            path: in this layer, which is the writable one.
        """
        if not self._may_have_moves():
            os.setxattr(whiteout.inside(self.fd, b"."), whiteout.MOVED, b"y")
        if self._moved is not None:
            self._moved[former] = path

    def note_rename(self, old: Names, new: Names, *, exchange: bool) -> None:
        """Note that a directory of this layer was renamed."""

        def renamed(path: Names) -> Names:
            if path[: len(old)] == old:
                return new + path[len(old) :]
            return old + path[len(new) :] if exchange and path[: len(new)] == new else path

        if self._moved:
            self._moved = {former: renamed(path) for former, path in self._moved.items()}

    def _files(self) -> Iterator[tuple[tuple[int, int], int, Names]]:
        """Yield device and inode number, number of links, and path of what is no directory."""
        for found in walk(self.fd):
            at = found.status
            if not stat.S_ISDIR(at.st_mode):
                yield (at.st_dev, at.st_ino), at.st_nlink, tuple(found.path.split(b"/"))


def lift(path: Names, above: Sequence[Layer]) -> Names:
    """Return where a file of a layer is seen, if nothing hides it.

    Args:
        path: in its layer.
        above: the layers above that, top first.
    """
    for layer in reversed(above):
        path = layer.lift(path)
    return path


def clone(path: str | Path, *, read_only: bool) -> int:
    """Return an O_PATH descriptor of a directory in a private copy of its mount.

    Nothing mounted below it is in the copy, so that a walk in a layer never comes into the stack
    itself; a read-only copy also makes the kernel refuse every change.

    Raises:
        OSError: *path* is not a directory that can be opened, or the kernel lacks the calls.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copy = abi.open_tree(fd, b"", abi.OPEN_TREE_CLONE | abi.AT_EMPTY_PATH | os.O_CLOEXEC)
    finally:
        os.close(fd)
    if read_only:
        abi.mount_setattr(copy, b"", abi.AT_EMPTY_PATH, abi.MOUNT_ATTR_RDONLY)
    return copy


def listing(dir_fd: int) -> dict[bytes, Kind]:
    """Return the names of one directory of one layer and what they mean to the union."""
    with_marks = whiteout.opacity(dir_fd) == b"x"
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        with os.scandir(fd) as entries:
            return {os.fsencode(e.name): _kind(fd, e, with_marks) for e in entries}
    finally:
        os.close(fd)


def _kind(fd: int, entry: "os.DirEntry[str]", with_marks: bool) -> Kind:
    if entry.is_dir(follow_symlinks=False):
        return Kind.DIRECTORY
    if entry.is_file(follow_symlinks=False):
        if with_marks:
            path = whiteout.inside(fd, os.fsencode(entry.name))
            return (
                Kind.FILE if whiteout.attribute(path, whiteout.WHITEOUT) is None else Kind.WHITEOUT
            )
        return Kind.FILE
    if entry.is_symlink():
        return Kind.FILE
    return Kind.WHITEOUT if whiteout.is_whiteout(entry.stat(follow_symlinks=False)) else Kind.FILE
