"""Memory of huge pages: hugetlbfs, by mmap(2) with MAP_HUGETLB, memfd_create(2) with MFD_HUGETLB.

Files of hugetlbfs are read as others, but can be written to by way of a mapping only. A host has so
many huge pages as its administrator has set aside.

Source: Documentation/admin-guide/mm/hugetlbpage.rst; fs/hugetlbfs/inode.c.
"""

import mmap
import os
from pathlib import Path
from typing import Final

from ckpt.kinds.content import Content, Extent
from ckpt.kinds.protocol import Dump, Workshop
from launcher.abi import fstatfs_type

ANONYMOUS: Final = "/anon_hugepage (deleted)"
"""The nameless file of a mapping with MAP_ANONYMOUS, as /proc shows it."""

_HUGETLBFS_MAGIC: Final = 0x958458F6
_MAP_HUGETLB: Final = 0x40000
_MFD_HUGETLB: Final = 4
_SIZE_SHIFT: Final = 26  # MAP_HUGE_SHIFT, MFD_HUGE_SHIFT
_PIECE: Final = 2 << 20
_POOLS: Final = Path("/sys/kernel/mm/hugepages")


def size_of(fd: int) -> int:
    """Return the bytes of a page of the file *fd*, which may be an O_PATH descriptor; 0: ordinary.

    Source: fs/hugetlbfs/inode.c: i_blkbits.
    """
    return os.fstat(fd).st_blksize if fstatfs_type(fd) == _HUGETLBFS_MAGIC else 0


def map_flags(size: int) -> int:
    """Return what mmap(2) wants for pages of *size* bytes; of ordinary ones, which are 0: none."""
    return _MAP_HUGETLB | (size.bit_length() - 1) << _SIZE_SHIFT if size else 0


def memfd_flags(size: int) -> int:
    """Return what memfd_create(2) wants for them."""
    return _MFD_HUGETLB | (size.bit_length() - 1) << _SIZE_SHIFT if size else 0


def collect_content(fd: int, size: int, dump: Dump) -> Content:
    """Store what is in a file of huge pages; what is all zeros is left out."""
    extents = []
    for offset in range(0, 0 if dump.looking_only else size, _PIECE):
        piece = os.pread(fd, _PIECE, offset)
        if piece.count(0) != len(piece):
            extents.append(Extent(offset, len(piece), dump.store(piece)))
    return Content(size, extents)


def rebuild_content(content: Content, fd: int, workshop: Workshop) -> None:
    """Write the content into the empty file *fd* of huge pages.

    Raises:
        OSError: ENOMEM: there are no more.
    """
    os.ftruncate(fd, content.size)
    if not content.extents:
        return
    with mmap.mmap(fd, content.size) as memory:
        for extent in content.extents:
            data = workshop.load(extent.first_page, extent.length)
            memory[extent.offset : extent.offset + extent.length] = data


def available(size: int) -> int:
    """Return how many more pages of *size* bytes programs of this host can have."""
    pool = _POOLS / f"hugepages-{size >> 10}kB"

    def read(name: str) -> int:
        return int((pool / name).read_text())

    if not pool.exists():
        return 0
    more = read("nr_overcommit_hugepages") - read("surplus_hugepages")
    return read("free_hugepages") - read("resv_hugepages") + max(0, more)
