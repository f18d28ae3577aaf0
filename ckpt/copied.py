"""Which memory of a process is stored already, and where. Pure."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from ckpt.model import PAGE_SIZE

_END: Final = 1 << 64


class Copied:
    """Ranges of addresses, whole pages, and the number of each one's first page in the archive."""

    def __init__(self) -> None:
        # Ascending, without overlaps.
        self._ranges: list[tuple[int, int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield the ranges, ascending: start, end, first page."""
        return iter(self._ranges)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def copy(self) -> "Copied":
        """Return another one, as this is now."""
        new = Copied()
        new._ranges = self._ranges.copy()
        return new

    def put(self, start: int, end: int, first: int) -> None:
        """Note that start to *end* is stored from page *first* on, in place of what was noted."""
        at = self._remove(start, end)
        self._ranges.insert(at, (start, end, first))

    def cut(self, start: int, end: int) -> None:
        """Forget start to *end*: it has changed."""
        self._remove(start, end)

    def look(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield the parts of start to *end*, each with its first page; None: it is not stored."""
        at = start
        for index in range(self._first(start), len(self._ranges)):
            begin, stop, first = self._ranges[index]
            if begin >= end:
                break
            if at < begin:
                yield at, begin, None
                at = begin
            upto = min(stop, end)
            yield at, upto, first + (at - begin) // PAGE_SIZE
            at = upto
        if at < end:
            yield at, end, None

    def _first(self, start: int) -> int:
        """Return the index of the first range that ends behind *start*."""
        index = bisect_right(self._ranges, (start, _END))
        return index - 1 if index and self._ranges[index - 1][1] > start else index

    def _remove(self, start: int, end: int) -> int:
        """Cut start to *end* out; return the index at which a range of it would stand."""
        low = high = self._first(start)
        left: list[tuple[int, int, int]] = []
        right: list[tuple[int, int, int]] = []
        while high < len(self._ranges) and self._ranges[high][0] < end:
            begin, stop, first = self._ranges[high]
            if begin < start:
                left.append((begin, start, first))
            if stop > end:
                right.append((end, stop, first + (end - begin) // PAGE_SIZE))
            high += 1
        self._ranges[low:high] = left + right
        return low + len(left)
