"""The page map: which unique page is the n-th page of the pod. Pure.

Pages are numbered in the order in which they were added (the page sequence). Each content is stored
once, as a *unique page*; the map is a list of runs, each saying that the next `count` pages of the
sequence are the unique pages from `first` on. Runs are as long as they can be, so that a map has
one encoding, and reading a range of pages is mostly one copy.

An archive that builds upon an earlier one counts that one's unique pages first, then its own.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from ckpt.archive.errors import FormatError
from ckpt.archive.schema import MAX_PAGES

_RUN: Final = struct.Struct(
    "<"
    "I"  # first unique page
    "I"  # pages in the run
)


_HASH: Final = hashlib.sha256().digest_size


class Deduplicator:
    """Gives each page of the sequence its unique page, by the SHA-256 of its content.

    Attributes:
        below: how many unique pages the earlier archive has.
    """

    def __init__(self, earlier: bytes = b"") -> None:
        """Begin with no page.

        Args:
            earlier: the hashes of an earlier archive's unique pages, one after another.

        Raises:
            FormatError: two of them are the same.
        """
        starts = range(0, len(earlier), _HASH)
        self._known = {earlier[at : at + _HASH]: number for number, at in enumerate(starts)}
        self.below = len(starts)
        if len(self._known) != self.below:
            raise FormatError("the earlier archive has a unique page twice")
        self._hashes = bytearray()  # of its own unique pages
        self._runs: list[tuple[int, int]] = []
        self._first = self._count = 0  # the run that is still growing

    def add(self, digests: list[bytes]) -> list[int]:
        """Append pages to the sequence; return the positions in *digests* of the new contents."""
        known, new = self._known, []
        for position, sha256 in enumerate(digests):
            unique = known.get(sha256)
            if unique is None:
                unique = known[sha256] = len(known)
                self._hashes += sha256
                new.append(position)
            if unique == self._first + self._count:
                self._count += 1
            else:
                self._end_run()
                self._first, self._count = unique, 1
        return new

    def _end_run(self) -> None:
        if self._count:
            self._runs.append((self._first, self._count))

    def finish(self) -> bytes:
        """Return the encoded map; the last call."""
        self._end_run()
        return b"".join(_RUN.pack(*run) for run in self._runs)

    @property
    def unique(self) -> int:
        """How many unique pages there are that the earlier archive does not have."""
        return len(self._known) - self.below

    def hashes(self) -> bytes:
        """Return the SHA-256 digests of these, one after another."""
        return bytes(self._hashes)


class PageMap:
    """The map, decoded.

    Attributes:
        count: pages in the sequence.
    """

    def __init__(self, packed: bytes, unique: int, below: int = 0) -> None:
        """Decode *packed*, which maps onto *unique* unique pages, behind *below* earlier ones.

        Raises:
            FormatError: it is not a map that Deduplicator makes.
        """
        if len(packed) % _RUN.size:
            raise FormatError(f"a page map of {len(packed)} bytes")
        self._firsts: list[int] = []
        self._starts: list[int] = []  # number in the sequence of each run's first page
        self.count, seen = 0, below
        expected = 0  # a run that begins here would belong to the run before
        for first, count in _RUN.iter_unpack(packed):
            if not count or first > seen or (first == expected and self._firsts):
                raise FormatError(f"page {self.count} begins a run that cannot be")
            self._firsts.append(first)
            self._starts.append(self.count)
            self.count += count
            expected = first + count
            seen = max(seen, expected)
        if seen != below + unique or max(seen, self.count) > MAX_PAGES:
            raise FormatError(
                f"the page map knows {seen - below} unique pages, the archive has {unique}"
            )

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield what pages *first* to *first* + *count* are: first unique page, number of pages.

        Raises:
            IndexError: the sequence has no such pages.
        """
        if first < 0 or count < 0 or first + count > self.count:
            raise IndexError(f"pages {first} to {first + count} of {self.count}")
        run = bisect_right(self._starts, first) - 1
        while count:
            end = self._starts[run + 1] if run + 1 < len(self._starts) else self.count
            step = min(count, end - first)
            yield self._firsts[run] + first - self._starts[run], step
            first, count, run = first + step, count - step, run + 1
