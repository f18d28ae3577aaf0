"""Which pages of a mapping hold something of the process's own.

Source: Documentation/admin-guide/mm/pagemap.rst.
"""

import array
import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from typing import Final

from ckpt import abi
from ckpt.model import PAGE_SIZE

_REGIONS: Final = 1024
_PRESENT, _SWAPPED, _FILE = 1 << 63, 1 << 62, 1 << 61
_SOFT_DIRTY: Final = 1 << 55
_FRAME: Final = (1 << 55) - 1
_CHUNK_PAGES: Final = 1 << 16
_BLOCK_PAGES: Final = 512
_EACH: Final = sum(1 << 64 * number for number in range(_BLOCK_PAGES))

Range = tuple[int, int]
"""First address, and the one after the last."""


class PageMap:
    """The page map of a process. As a context: closed at the end."""

    def __init__(self, host_pid: int) -> None:
        self._fd = os.open(f"/proc/{host_pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._regions = (abi.page_region * _REGIONS)()

    def __enter__(self) -> "PageMap":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def own_pages(self, start: int, end: int) -> list[Range]:
        """Return the ranges of private pages in memory or swap that are not those of a file.

        The shared page of zeros does not count. On a kernel without PAGEMAP_SCAN (before Linux
        v6.7) it does, and is stored once by the archive.
        """
        found = self._scan_own(start, end)
        return self._read(start, end) if found is None else found

    def is_watched(self, start: int) -> bool:
        """Is the mapping at *start* watched for what is written to it (ckpt/watch.py)?"""
        try:
            self._scan_own(start, start + PAGE_SIZE, flags=abi.PM_SCAN_CHECK_WPASYNC)
        except PermissionError:
            return False
        return True

    def take_written(self, start: int, end: int) -> list[Range]:
        """Return what own_pages() does and was written to since the last call; begin anew.

        None of it where the program's memory is not watched (ckpt/watch.py).

        Raises:
            OSError: the kernel cannot do that.
        """
        found = self._scan_own(start, end, abi.PAGE_IS_WRITTEN, abi.PM_SCAN_WP_MATCHING)
        if found is None:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return found

    def written(self, start: int, end: int) -> list[Range]:
        """Return what take_written() would, or all of a mapping that is not watched."""
        try:
            found = self._scan_own(start, end, abi.PAGE_IS_WRITTEN, abi.PM_SCAN_CHECK_WPASYNC)
        except PermissionError:
            found = None
        return [(start, end)] if found is None else found

    def guards(self, start: int, end: int) -> list[Range]:
        """Return the ranges of MADV_GUARD_INSTALL; none on a kernel before Linux v6.15."""
        try:
            return self._scan(start, end, absent=0, any_of=abi.PAGE_IS_GUARD)
        except OSError as e:
            if e.errno not in {errno.ENOTTY, errno.EINVAL}:
                raise
            return []

    def is_full(self, start: int, end: int) -> bool:
        """Is each page of it in memory?"""
        present = sum(
            bool(entry & _PRESENT)
            for _, block in self.blocks(start, end)
            for entry in array.array("Q", block)
        )
        return present == (end - start) // PAGE_SIZE

    def blocks(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield the entries of up to 512 pages each as the kernel gives them, and their address.

        Without those of pages that are not there at all: 512 in a row whose entries are 0.
        """
        for at in range(start, end, _CHUNK_PAGES * PAGE_SIZE):
            count = min(_CHUNK_PAGES, (end - at) // PAGE_SIZE)
            raw = os.pread(self._fd, 8 * count, at // PAGE_SIZE * 8)
            if raw == bytes(len(raw)):
                continue
            for offset in range(0, len(raw), 8 * _BLOCK_PAGES):
                block = raw[offset : offset + 8 * _BLOCK_PAGES]
                if block != bytes(len(block)):
                    yield at + offset // 8 * PAGE_SIZE, block

    def entry(self, address: int) -> int:
        """Return the entry of one page."""
        return int.from_bytes(os.pread(self._fd, 8, address // PAGE_SIZE * 8), "little")

    def _scan_own(
        self, start: int, end: int, required: int = 0, flags: int = 0
    ) -> list[Range] | None:
        """Return the ranges of own pages that have the category *required*; None: no such call."""
        clean = abi.PAGE_IS_PFNZERO | abi.PAGE_IS_FILE
        any_of = abi.PAGE_IS_PRESENT | abi.PAGE_IS_SWAPPED
        # A guard counts as swapped, too; before Linux v6.15 the kernel does not know the category.
        for absent in (clean | abi.PAGE_IS_GUARD, clean):
            try:
                return self._scan(
                    start, end, absent=absent, any_of=any_of, required=required, flags=flags
                )
            except OSError as e:
                if e.errno not in {errno.ENOTTY, errno.EINVAL}:
                    raise
        return None

    def _scan(
        self, start: int, end: int, *, absent: int, any_of: int, required: int = 0, flags: int = 0
    ) -> list[Range]:
        arg = abi.pm_scan_arg(
            size=ctypes.sizeof(abi.pm_scan_arg),
            flags=flags,
            start=start,
            end=end,
            vec=ctypes.addressof(self._regions),
            vec_len=_REGIONS,
            category_inverted=absent,
            category_mask=absent | required,
            category_anyof_mask=any_of,
            return_mask=any_of,
        )
        found: list[Range] = []
        while arg.start < end:
            count = abi.ioctl(self._fd, abi.PAGEMAP_SCAN, arg)
            for region in self._regions[:count]:
                _append(found, region.start, region.end)
            arg.start = arg.walk_end
        return found

    def _read(self, start: int, end: int) -> list[Range]:
        return join(
            at + number * PAGE_SIZE
            for at, block in self.blocks(start, end)
            for number, entry in enumerate(array.array("Q", block))
            if is_own(entry)
        )


def is_own(entry: int) -> bool:
    """Is a page that has this entry in memory or swap, and not one of a file?"""
    return bool(entry & (_PRESENT | _SWAPPED)) and not entry & _FILE


def is_marked(entry: int) -> bool:
    """Was a page that has this entry written to since the marks were taken off?

    Source: Documentation/admin-guide/mm/soft-dirty.rst.
    """
    return bool(entry & _SOFT_DIRTY)


def frame(entry: int) -> int:
    """Return where the page is, in memory or in swap; 0: nowhere, or the kernel does not say."""
    return entry & _FRAME


def differences(before: bytes, now: bytes) -> list[int]:
    """Return the numbers of the entries of a block whose pages may have changed. Pure.

    A page is what it was if it is where it was, and was not written to. Where it is must be asked,
    too: memory that is moved as a whole table takes no mark along (mm/mremap.c, move_normal_pmd()),
    and pages that were dropped leave none.

    Args:
        before: entries of the same pages when the marks were taken off; where it is shorter, the
            pages were not looked at.
        now: their entries as they are.
    """
    same = _EACH * (_PRESENT | _SWAPPED | _FILE | _FRAME)
    old = int.from_bytes(before[: len(now)], "little")
    new = int.from_bytes(now, "little")
    found = (old ^ new) & same | new & _EACH * _SOFT_DIRTY
    if not found:
        return []
    words = array.array("Q", found.to_bytes(len(now), "little"))
    return [number for number, word in enumerate(words) if word]


def join(addresses: Iterable[int]) -> list[Range]:
    """Return the ranges of pages whose addresses, ascending, these are."""
    found: list[Range] = []
    for address in addresses:
        _append(found, address, address + PAGE_SIZE)
    return found


def _append(found: list[Range], start: int, end: int) -> None:
    if found and found[-1][1] == start:
        found[-1] = (found[-1][0], end)
    else:
        found.append((start, end))
