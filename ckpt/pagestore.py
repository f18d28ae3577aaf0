"""Memory on its way to the archive: read in pieces, gathered, handed over in bigger ones."""

from collections.abc import Callable, Iterator
from typing import Final

from ckpt.model import PAGE_SIZE
from ckpt.tracee import Memory

CHUNK: Final = 4 << 20
"""Bytes that are handed over at once, at most."""


def pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield address and length of what to read one after another."""
    return ((at, min(CHUNK, end - at)) for at in range(start, end, CHUNK))


class PageStore:
    """Gathers pages of a process into pieces of a good size for the archive."""

    def __init__(self, memory: Memory, add: Callable[[memoryview], int]) -> None:
        """Read from *memory*, which stays the caller's.

        Args:
            memory: of the process.
            add: takes page data and returns the number of its first page in the archive.
        """
        self._memory = memory
        self._add = add
        self._buffer = bytearray()
        self._bases: list[int] = []

    def read(self, at: int, length: int) -> Callable[[], int]:
        """Read *length* bytes from *at*; what is returned tells, after flush(), their first page.

        Raises:
            OSError: nothing is mapped there.
        """
        if len(self._buffer) + length > CHUNK:
            self.flush()
        piece, offset = len(self._bases), len(self._buffer)
        self._buffer += self._memory.read(at, length)
        return lambda: self._bases[piece] + offset // PAGE_SIZE

    def flush(self) -> None:
        """Hand over what was gathered."""
        if self._buffer:
            self._bases.append(self._add(memoryview(self._buffer)))
            self._buffer = bytearray()
