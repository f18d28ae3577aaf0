"""Directories that were moved without their files: where the layers below have what is in them.

As the kernel's overlayfs writes it, an extended attribute of the moved directory holds its former
path, "/a/b" from the root, or "b" for another name in the same directory, as the layers below
show it. Whatever a value says, looking goes on in lower layers only and never through a symbolic
link, so it ends, and ends within the stack.

Source: fs/overlayfs/namei.c, ovl_lookup_layer() and ovl_check_redirect(), v6.12.
"""

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from stackfs.layers import whiteout
from stackfs.layers.walk import walk

Path = tuple[bytes, ...]
"""Names from the root of a layer, or of what a stack shows; or from a directory that is known."""

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE: Final = (errno.ENOENT, errno.ENAMETOOLONG)
_NO_DIRECTORY: Final = (errno.ENOTDIR, errno.ELOOP)


def encode(path: Path) -> bytes:
    """Return the value of a redirect to a path from the root."""
    return b"/" + b"/".join(path)


def is_valid(value: bytes) -> bool:
    """Tell whether the value of a redirect is "name" or "/name/name"."""
    names = value.removeprefix(b"/").split(b"/")
    well_formed = all(0 < len(name) < 256 and name not in (b".", b"..") for name in names)
    return well_formed and b"\0" not in value and (len(names) == 1 or value.startswith(b"/"))


class Way:
    """The way to one directory through the layers of a stack, top first.

    Attributes:
        path: where it is in the next layer: from the root of that, or else from the directory
            in which it was looked for.
        absolute: whether *path* begins at the root.
        ended: whether nothing of it shows from the layers below.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.absolute = False
        self.ended = False

    @property
    def redirect(self) -> bytes:
        """What a redirect to the directory in the next layer says."""
        return encode(self.path) if self.absolute else self.path[-1]

    def turn(self, dir_fd: int, name: bytes = b".") -> None:
        """Heed the marks of the directory *name* in *dir_fd*, which `path` ends with so far."""
        opaque, value = whiteout.marks(dir_fd, name)
        if opaque or (value is not None and not is_valid(value)):
            self.ended = True
        elif value is not None:
            self.absolute |= value.startswith(b"/")
            names = tuple(value.removeprefix(b"/").split(b"/"))
            self.path = names if value.startswith(b"/") else (*self.path[:-1], *names)

    def descend(
        self, roots: Sequence[int], parent: Mapping[int, int], layers: Iterable[int]
    ) -> dict[int, int]:
        """Look in the next layers; return descriptors of the directory where it was found.

        Args:
            roots: a descriptor of the root directory of each layer, top first.
            parent: descriptors of the directory in which it is looked for, by layer.
            layers: the next ones, as indexes of *roots*.

        Returns:
            O_PATH descriptors by layer, top first; they become the caller's.
        """
        found: dict[int, int] = {}
        try:
            for layer in layers:
                start = roots[layer] if self.absolute else parent.get(layer)
                if start is None or self.ended:
                    continue
                fd = self.step(start)
                if fd >= 0:
                    found[layer] = fd
        except BaseException:
            close(found)
            raise
        return found

    def step(self, start: int) -> int:
        """Look in the next layer; return an O_PATH descriptor of the directory there, or -1.

        Args:
            start: a descriptor of what `path` begins at. It stays the caller's.
        """
        names, self.path = self.path, ()
        at = os.dup(start)
        for index, name in enumerate(names):
            try:
                below = os.open(name, _DIRECTORY, dir_fd=at)
            except OSError as e:
                if e.errno not in (*_NOT_THERE, *_NO_DIRECTORY):
                    raise
                self.ended |= e.errno in _NO_DIRECTORY
                self.path += names[index:]
                return -1
            finally:
                os.close(at)
            at = below
            self.path += (name,)
            self.turn(at)
        return at


def close(places: Mapping[int, int]) -> None:
    """Close descriptors of one directory in several layers."""
    for fd in places.values():
        os.close(fd)


def until_opaque(roots: Sequence[int]) -> Sequence[int]:
    """Return the layers, given by their root directories, down to one whose root is opaque."""
    for index, fd in enumerate(roots):
        if whiteout.opacity(fd) == b"y":
            return roots[: index + 1]
    return roots


def moved(fd: int) -> dict[Path, Path]:
    """Return the directories of a layer that were moved: the path of each by its former one.

    Args:
        fd: of the layer's root directory.
    """
    found: dict[Path, Path] = {}
    former: dict[Path, Path] = {(): ()}
    for at in walk(fd, directories_only=True):
        if at.path == b".":
            continue
        path = tuple(at.path.split(b"/"))
        way = Way((*former[path[:-1]], path[-1]))
        way.turn(at.dir_fd, at.name)
        former[path] = way.path
        if way.path[-1:] != path[-1:] or way.absolute:
            found[way.path] = path
    return found


def lift(moved_here: dict[Path, Path], path: Path) -> Path:
    """Return where a file of the layers below is seen through one in which directories moved."""
    for depth in range(len(path) - 1, 0, -1):
        place = moved_here.get(path[:depth])
        if place is not None:
            return place + path[depth:]
    return path
