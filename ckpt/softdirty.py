"""Memory that is watched by soft-dirty marks: what Linux has before v6.7, Debian 12's own among it.

A page that is written to is marked by the kernel, and clear_refs takes all marks of a process off:
at once, and whoever else wants them. So it is the second choice (ckpt/protected.py is the first).
Nothing is made in the program, and nothing is left in it.

Source: Documentation/admin-guide/mm/soft-dirty.rst; CONFIG_MEM_SOFT_DIRTY.
"""

import array
import ctypes
import functools
import mmap
import os
from collections.abc import Iterator

from msgspec import Struct

from ckpt import pagemap
from ckpt.copied import Copied
from ckpt.freeze import FrozenProcess
from ckpt.kinds import memory
from ckpt.model import PAGE_SIZE
from ckpt.pagemap import PageMap, Range


class SoftDirty(Struct):
    """A Watched, see there.

    Attributes:
        before: all entries when the marks were taken off, by the address of their block.
    """

    view: int
    copied: Copied
    written: list[Range]
    before: dict[int, bytes]

    def take(self, view: int) -> None:
        """See Watched."""
        self.view, self.written = view, []
        mappings = memory.private_mappings(view)
        with PageMap(view) as pages:
            for m in mappings:
                changed = self._changed(pages, m.start, m.end)
                self.written += pagemap.join(at for at, entry in changed if pagemap.is_own(entry))
            _take_marks_off(view)
            blocks = (block for m in mappings for block in pages.blocks(m.start, m.end))
            self.before = dict(blocks)

    def settle(self, view: int) -> None:
        """See Watched."""
        with PageMap(view) as pages:
            for m in memory.private_mappings(view):
                for start, end in pagemap.join(
                    at for at, _ in self._changed(pages, m.start, m.end)
                ):
                    self.copied.cut(start, end)

    def close(self) -> None:
        """See Watched."""

    def _changed(self, pages: PageMap, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield address and entry of each page that may not be what it was."""
        for at, now in pages.blocks(start, end):
            numbers = pagemap.differences(self.before.get(at, b""), now)
            entries = array.array("Q", now)
            for number in numbers:
                yield at + number * PAGE_SIZE, entries[number]


def watch(process: FrozenProcess) -> SoftDirty | None:
    """Begin to watch a frozen process; None: the kernel has no such marks."""
    return SoftDirty(process.view, Copied(), [], {}) if kernel_marks() else None


@functools.cache
def kernel_marks() -> bool:
    """Does the kernel mark what is written to, and say where pages are? Tried on this process.

    A kernel without the marks takes the request to clear them, and does nothing.
    """
    with (
        mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page,
        PageMap(os.getpid()) as pages,
    ):
        byte = ctypes.c_char.from_buffer(page)
        byte.value, at = b"1", ctypes.addressof(byte)
        _take_marks_off(os.getpid())
        clean = pages.entry(at)
        byte.value = b"2"
        marked = pages.entry(at)
        del byte  # or the mapping could not be closed
    there = pagemap.is_own(clean) and pagemap.frame(clean) != 0
    return there and pagemap.is_marked(marked) and not pagemap.is_marked(clean)


def _take_marks_off(pid: int) -> None:
    """Source: proc_pid_clear_refs(5), "4"."""
    fd = os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"4")
    finally:
        os.close(fd)
