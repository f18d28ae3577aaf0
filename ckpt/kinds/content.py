"""Content and attributes of a file that exists nowhere else: unlinked files, memfds, tmpfs.

Holes stay holes; where a file system does not say where they are, pages of zeros become holes.
Data go through in pieces, never as a whole.
"""

import errno
import itertools
import os
import stat as mode_bits
from collections.abc import Iterator
from typing import Final

import msgspec

from ckpt.kinds.protocol import Dump, Workshop
from ckpt.model import PAGE_SIZE

PIECE_BYTES: Final = 4 << 20
_ZEROS: Final = bytes(PAGE_SIZE)


class Extent(msgspec.Struct, frozen=True):
    """A run of data in a file: where, how long, and its first page in the archive."""

    offset: int
    length: int
    first_page: int


class Content(msgspec.Struct, frozen=True):
    """What a file holds: everything but *extents* is zero."""

    size: int
    extents: list[Extent]


class Attributes(msgspec.Struct, frozen=True):
    """What inode(7) says of a file: permissions with set-id and sticky bits, owner, times."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    xattrs: dict[bytes, bytes]


def collect_content(fd: int, size: int, dump: Dump) -> Content:
    """Store the data of the readable, seekable *fd*, which may be the program's own description.

    The file offset of *fd* moves: give a descriptor of your own.
    """
    if dump.looking_only:
        return Content(size, [])
    extents = []
    runs = _not_zero if _hides_holes(fd, size) else _whole
    for start, end in _data(fd, size):
        for offset in range(start, end, PIECE_BYTES):
            piece = os.pread(fd, min(PIECE_BYTES, end - offset), offset)
            for first, last in runs(piece):
                data = memoryview(piece)[first:last]
                extents.append(Extent(offset + first, len(data), dump.store(data)))
    return Content(size, extents)


def rebuild_content(content: Content, fd: int, workshop: Workshop) -> None:
    """Write the content into the empty file *fd*."""
    os.ftruncate(fd, content.size)
    for extent in content.extents:
        data, done = workshop.load(extent.first_page, extent.length), 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], extent.offset + done)


def collect_attributes(fd: int | None, stat: os.stat_result) -> Attributes:
    """Return the attributes of *fd*, which must not be an O_PATH descriptor; None: no xattrs."""
    return Attributes(
        mode=mode_bits.S_IMODE(stat.st_mode),
        uid=stat.st_uid,
        gid=stat.st_gid,
        atime_ns=stat.st_atime_ns,
        mtime_ns=stat.st_mtime_ns,
        xattrs={} if fd is None else _xattrs(fd),
    )


def rebuild_attributes(attributes: Attributes, fd: int) -> None:
    """Give *fd* its attributes; last, for writing changes times and clears set-id bits."""
    os.fchown(fd, attributes.uid, attributes.gid)
    os.fchmod(fd, attributes.mode)
    for name, value in attributes.xattrs.items():
        os.setxattr(fd, name, value)
    os.utime(fd, ns=(attributes.atime_ns, attributes.mtime_ns))


def _xattrs(fd: int) -> dict[bytes, bytes]:
    try:
        return {os.fsencode(name): os.getxattr(fd, name) for name in os.listxattr(fd)}
    except OSError as e:
        if e.errno in {errno.ENOTSUP, errno.ENOSYS}:
            return {}
        raise


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Return the ranges of *fd* that are not holes.

    Source: lseek(2), SEEK_DATA; ENXIO: only a hole follows.
    """
    position = 0
    while position < size:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(fd, position, os.SEEK_HOLE), size)
        yield position, end
        position = end


def _hides_holes(fd: int, size: int) -> bool:
    """Does *fd* have holes, in a file system that does not say where, like stackfs?"""
    return os.fstat(fd).st_blocks * 512 < size and os.lseek(fd, 0, os.SEEK_HOLE) >= size


def _whole(piece: bytes) -> Iterator[tuple[int, int]]:
    if piece:
        yield 0, len(piece)


def _not_zero(piece: bytes) -> Iterator[tuple[int, int]]:
    """Return the runs of pages of *piece* that are not only zeros."""

    def is_zero(at: int) -> bool:
        page = piece[at : at + PAGE_SIZE]
        return page == _ZEROS[: len(page)]

    for zero, run in itertools.groupby(range(0, len(piece), PAGE_SIZE), is_zero):
        pages = list(run)
        if not zero:
            yield pages[0], min(pages[-1] + PAGE_SIZE, len(piece))
