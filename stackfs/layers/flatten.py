"""Merging layers into one that shows the same.

The new layer decides every name that the merged ones have in a directory: it may lie above them,
or some of them, as well as take their place. So it is put into place by one rename(2), and they
can be removed afterwards one by one, whatever interrupts that.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from stackfs.layers import copying, whiteout
from stackfs.layers.layer import DIRECTORY, Layer, listing
from stackfs.layers.union import Entry, Kind, merge
from stackfs.layers.walk import exists

Place = tuple[Layer, int]
"""A directory in a layer, by its O_PATH descriptor."""


@dataclass(slots=True)
class _Level:
    """A directory on the way down.

    Attributes:
        name: its name in the directory above.
        places: where it is in the merged layers, top first.
        below: its descriptors in the layers below those.
        opaque: whether nothing of those shows in it.
        fd: of the directory that is being made.
        directories: what is still to be done in it; with each, whether a name that is no
            directory ends it below.
    """

    name: bytes
    places: list[Place]
    below: list[int]
    opaque: bool
    fd: int
    directories: list[tuple[bytes, Entry[Place], bool]]

    def close(self) -> None:
        for fd in (*(fd for _, fd in self.places), *self.below, self.fd):
            os.close(fd)


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
        _Flattening(dir_fd, links_fd).run(name, merged, below)
    finally:
        os.close(links_fd)


class _Flattening:
    """What is remembered: another name of each file that has several, by what it is a copy of."""

    def __init__(self, dir_fd: int, links_fd: int) -> None:
        self._dir_fd = dir_fd
        self._links_fd = links_fd
        self._linked: dict[tuple[int, int], bytes] = {}

    def run(self, name: bytes, merged: Sequence[Layer], below: Sequence[int]) -> None:
        alone = Entry(tuple((layer, layer.fd) for layer in merged), directory=True)
        levels = [self._enter(self._dir_fd, list(below), name, alone, b".")]
        try:
            while levels:
                level = levels[-1]
                if level.directories:
                    at, entry, cut = level.directories.pop()
                    below = [] if level.opaque or cut else level.below
                    levels.append(self._enter(level.fd, below, at, entry, at, opaque=cut))
                else:
                    levels.pop()
                    _finish(levels[-1].fd if levels else self._dir_fd, level, root=not levels)
        finally:
            for level in levels:
                level.close()

    def _enter(
        self,
        dir_fd: int,
        below: Sequence[int],
        name: bytes,
        entry: Entry[Place],
        source: bytes,
        *,
        opaque: bool = False,
    ) -> _Level:
        """Make a directory and the files in it."""
        places: list[Place] = []
        for layer, fd in entry.layers:
            places.append((layer, os.open(source, DIRECTORY, dir_fd=fd)))
            if whiteout.opacity(places[-1][1]) == b"y":
                opaque = True
                break
        os.mkdir(name, 0o700, dir_fd=dir_fd)
        fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
        level = _Level(name, places, [] if opaque else _open_all(below, source), opaque, fd, [])
        try:
            self._fill(level)
        except BaseException:
            level.close()
            raise
        return level

    def _fill(self, level: _Level) -> None:
        listings = [(place, listing(place[1])) for place in level.places]
        visible = merge(listings)
        for name, entry in visible.items():
            if entry.directory:
                cut = any(
                    names.get(name, Kind.DIRECTORY) != Kind.DIRECTORY for _, names in listings
                )
                level.directories.append((name, entry, cut))
            else:
                self._copy(entry.layers[0], name, level.fd)
        if level.opaque:
            whiteout.set_opaque(level.fd, b".")
            return
        for name in {name for _, names in listings for name in names} - visible.keys():
            kinds = (names.get(name, Kind.WHITEOUT) for _, names in listings)
            hides = any(kind is not Kind.WHITEOUT for kind in kinds)
            if hides or any(exists(fd, name) for fd in level.below):
                whiteout.make(level.fd, name)

    def _copy(self, place: Place, name: bytes, dir_fd: int) -> None:
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


def _finish(dir_fd: int, level: _Level, *, root: bool) -> None:
    """Give a directory its attributes, now that nothing is made in it any more."""
    layer, fd = level.places[0]
    try:
        status = os.stat(b".", dir_fd=fd)
        path = whiteout.inside(fd, b".")
        if not root:
            copying.set_number(dir_fd, level.name, layer.inode_number(status, path))
        xattrs = copying.read_xattrs(path, follow=False)
        copying.copy_attributes(dir_fd, level.name, status, xattrs)
    finally:
        level.close()


def _finish_file(dir_fd: int, name: bytes, status: os.stat_result, place: Place) -> None:
    layer, source_fd = place
    path = whiteout.inside(source_fd, name)
    copying.set_number(dir_fd, name, layer.inode_number(status, path))
    xattrs = copying.read_xattrs(path, follow=False)
    copying.copy_attributes(dir_fd, name, status, xattrs)


def _open_all(fds: Sequence[int], name: bytes) -> list[int]:
    """Open a directory in each of the layers below that has one of that name."""
    found = []
    for fd in fds:
        try:
            found.append(os.open(name, DIRECTORY, dir_fd=fd))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


def _link(source_fd: int, source: bytes, dir_fd: int, name: bytes) -> None:
    os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
