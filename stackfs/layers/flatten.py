"""Merging layers into one that shows the same.

The new layer decides every name that the merged ones have in a directory: it may lie above them,
or some of them, as well as take their place. So it is put into place by one rename(2), and they
can be removed afterwards one by one, whatever interrupts that.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from stackfs.layers import copying, redirect, whiteout
from stackfs.layers.layer import DIRECTORY, Layer, listing
from stackfs.layers.redirect import Way
from stackfs.layers.union import Kind, merge
from stackfs.layers.walk import exists


@dataclass(slots=True)
class _Level:
    """A directory on the way down.

    Attributes:
        name: its name in the directory above.
        places: its descriptors in the layers of the stack that have it, top first.
        mark: what it says of the layers below: the name and value of an extended attribute.
        fd: of the directory that is being made.
        directories: names of what is still to be done in it.
    """

    name: bytes
    places: dict[int, int]
    mark: tuple[str, bytes] | None = None
    fd: int = -1
    directories: list[bytes] = field(default_factory=list)

    def close(self) -> None:
        redirect.close(self.places)
        if self.fd >= 0:
            os.close(self.fd)


def flatten(merged: Sequence[Layer], below: Sequence[int], dir_fd: int, name: bytes) -> None:
    """Make directory *name* in *dir_fd*: a layer that shows what *merged* show together.

    Contents are copied; blocks are shared where the file system can. A whiteout is left out where
    it hides nothing. The caller writes it out (syncfs(2)) before it is used.

    Args:
        merged: layers of one stack, next to each other, top first; all numbered.
        below: O_PATH descriptors of the layers below.
        dir_fd: a work directory, on the file system of the layers; the caller removes what is
            made there if this fails.
        name: not there yet, as *name* with `.links` appended.
    """
    links = name + b".links"
    os.mkdir(links, 0o700, dir_fd=dir_fd)
    links_fd = os.open(links, DIRECTORY, dir_fd=dir_fd)
    try:
        _Flattening(merged, below, dir_fd, links_fd).run(name)
    finally:
        os.close(links_fd)


class _Flattening:
    """What is remembered: another name of each file that has several, by what it is a copy of."""

    def __init__(
        self, merged: Sequence[Layer], below: Sequence[int], dir_fd: int, links_fd: int
    ) -> None:
        self._merged = merged
        self._roots = redirect.until_opaque([*(layer.fd for layer in merged), *below])
        self._dir_fd = dir_fd
        self._links_fd = links_fd
        self._linked: dict[tuple[int, int], bytes] = {}
        self._redirects = False

    def run(self, name: bytes) -> None:
        places = {at: os.open(b".", DIRECTORY, dir_fd=fd) for at, fd in enumerate(self._roots)}
        root = _Level(name, places)
        if whiteout.opacity(self._roots[-1]) == b"y" and len(places) <= len(self._merged):
            root.mark = (whiteout.OPAQUE, b"y")
        levels = [root]
        try:
            self._make(self._dir_fd, root)
            while levels:
                level = levels[-1]
                if level.directories:
                    below = self._find(level, level.directories.pop())
                    levels.append(below)
                    self._make(level.fd, below)
                else:
                    levels.pop()
                    self._finish(levels[-1].fd if levels else self._dir_fd, level, root)
        finally:
            for level in levels:
                level.close()
        if self._redirects:
            os.setxattr(whiteout.inside(self._dir_fd, name), whiteout.MOVED, b"y")

    def _find(self, above: _Level, name: bytes) -> _Level:
        """Find a directory in all layers."""
        way = Way((name,))
        count = len(self._merged)
        layers = range(len(self._roots))
        level = _Level(name, way.descend(self._roots, above.places, layers[:count]))
        if way.ended:
            level.mark = (whiteout.OPAQUE, b"y")
        elif way.absolute or way.path != (name,):
            level.mark = (whiteout.REDIRECT, way.redirect)
            self._redirects = True
        try:
            level.places |= way.descend(self._roots, above.places, layers[count:])
        except BaseException:
            level.close()
            raise
        return level

    def _make(self, dir_fd: int, level: _Level) -> None:
        """Make a directory and the files in it."""
        os.mkdir(level.name, 0o700, dir_fd=dir_fd)
        level.fd = os.open(level.name, DIRECTORY, dir_fd=dir_fd)
        if level.mark is not None:
            os.setxattr(whiteout.inside(level.fd, b"."), *level.mark)
        count = len(self._merged)
        listings = {at: listing(fd) for at, fd in level.places.items() if at < count}
        visible = merge(listings.items())
        for name, entry in visible.items():
            if entry.directory:
                level.directories.append(name)
            else:
                at = entry.layers[0]
                self._copy((self._merged[at], level.places[at]), name, level.fd)
        if level.mark == (whiteout.OPAQUE, b"y"):
            return
        below = [fd for at, fd in level.places.items() if at >= count]
        for name in {name for names in listings.values() for name in names} - visible.keys():
            kinds = (names.get(name, Kind.WHITEOUT) for names in listings.values())
            hides = any(kind is not Kind.WHITEOUT for kind in kinds)
            if hides or any(exists(fd, name) for fd in below):
                whiteout.make(level.fd, name)

    def _finish(self, dir_fd: int, level: _Level, root: _Level) -> None:
        """Give a directory its attributes, now that nothing is made in it any more."""
        at, fd = next(iter(level.places.items()))
        try:
            status = os.stat(b".", dir_fd=fd)
            path = whiteout.inside(fd, b".")
            if level is not root:
                number = self._merged[at].inode_number(status, path)
                copying.set_number(dir_fd, level.name, number)
            xattrs = copying.read_xattrs(path, follow=False)
            copying.copy_attributes(dir_fd, level.name, status, xattrs)
        finally:
            level.close()

    def _copy(self, place: tuple[Layer, int], name: bytes, dir_fd: int) -> None:
        source_fd = place[1]
        status = os.stat(name, dir_fd=source_fd, follow_symlinks=False)
        key = (status.st_dev, status.st_ino)
        if key in self._linked:
            _link(self._links_fd, self._linked[key], dir_fd, name)
            return
        is_link = stat.S_ISLNK(status.st_mode)
        target = os.readlink(name, dir_fd=source_fd) if is_link else b""
        copying.make_like(dir_fd, name, status, target)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            source = os.open(name, flags, dir_fd=source_fd)
            copying.fill(source, dir_fd, name, status.st_size)
        _finish_file(dir_fd, name, status, place)
        if status.st_nlink > 1:
            self._linked[key] = b"%d" % len(self._linked)
            _link(dir_fd, name, self._links_fd, self._linked[key])


def _finish_file(
    dir_fd: int, name: bytes, status: os.stat_result, place: tuple[Layer, int]
) -> None:
    layer, source_fd = place
    path = whiteout.inside(source_fd, name)
    copying.set_number(dir_fd, name, layer.inode_number(status, path))
    xattrs = copying.read_xattrs(path, follow=False)
    copying.copy_attributes(dir_fd, name, status, xattrs)


def _link(source_fd: int, source: bytes, dir_fd: int, name: bytes) -> None:
    os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
