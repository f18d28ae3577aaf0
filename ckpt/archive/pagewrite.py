"""Writing the page sequence: hashed and compressed by workers, stored once.

Deduplication runs in the thread that calls, in the order of its calls, so that the same input gives
the same bytes.
"""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ckpt.archive import schema
from ckpt.archive.blobs import AHEAD, FrameWriter
from ckpt.archive.frames import FRAME_CONTENT
from ckpt.archive.pages import Deduplicator
from ckpt.model import PAGE_SIZE
from ckpt.progress import Progress


class PageWriter:
    """The page sequence being written. Two stages: hash and deduplicate, then compress.

    Attributes:
        count: pages so far.
        runs: the encoded page map, after finish().
    """

    def __init__(
        self, blob: FrameWriter, pool: ThreadPoolExecutor, progress: Progress, earlier: bytes
    ) -> None:
        """Write to *blob* what is not in the archive with the page hashes *earlier*.

        Raises:
            FormatError: *earlier* has a hash twice.
        """
        self._blob, self._pool, self._progress = blob, pool, progress
        self._dedup = Deduplicator(earlier)
        self._batch = bytearray()
        self._hashing: deque[tuple[bytearray, Future[list[bytes]]]] = deque()
        self._unique = bytearray()
        self._finished = False
        self.count = 0
        self.runs = b""

    def add(self, data: bytes | bytearray | memoryview) -> int:
        """Append *data*, whole pages, to the sequence; return the number of its first page.

        Copies *data*; waits while the workers are far behind.

        Raises:
            ValueError: not whole pages.
            RuntimeError: the pages have ended.
            OSError: the archive cannot be written.
        """
        if self._finished:
            raise RuntimeError("a page after the first layer")
        view = memoryview(data).cast("B")
        if len(view) % PAGE_SIZE:
            raise ValueError(f"{len(view)} bytes are not whole pages")
        first, self.count = self.count, self.count + len(view) // PAGE_SIZE
        if self.below + self.count > schema.MAX_PAGES:
            raise ValueError(f"more than {schema.MAX_PAGES} pages")
        self._progress.advance(len(view))
        while view:
            room = FRAME_CONTENT - len(self._batch)
            self._batch += view[:room]
            view = view[room:]
            if len(self._batch) == FRAME_CONTENT:
                self._hash_batch()
        return first

    def settle(self) -> None:
        """Have the workers do all that there is, and write it, but for what fills no frame yet."""
        self._deduplicate_all()
        self._blob.settle()

    def finish(self) -> FrameWriter:
        """End the sequence; return its blob, complete but for its end."""
        self._finished = True
        self._deduplicate_all()
        if self._unique:
            self._blob.put(self._unique)
        self.runs = self._dedup.finish()
        return self._blob

    @property
    def unique(self) -> int:
        """Unique pages so far that the earlier archive does not have."""
        return self._dedup.unique

    @property
    def below(self) -> int:
        """Unique pages of the earlier archive."""
        return self._dedup.below

    def hashes(self) -> bytes:
        """Return the digests of these unique pages, one after another."""
        return self._dedup.hashes()

    def _hash_batch(self) -> None:
        batch, self._batch = self._batch, bytearray()
        self._hashing.append((batch, self._pool.submit(_page_digests, batch)))
        if len(self._hashing) > AHEAD:
            self._deduplicate()

    def _deduplicate_all(self) -> None:
        if self._batch:
            self._hash_batch()
        while self._hashing:
            self._deduplicate()

    def _deduplicate(self) -> None:
        batch, hashing = self._hashing.popleft()
        new = self._dedup.add(hashing.result())
        if not self._unique and len(new) * PAGE_SIZE == FRAME_CONTENT:
            return self._blob.put(batch)  # the usual case: nothing to copy
        with memoryview(batch) as view:
            for start, end in _ranges(new):
                self._unique += view[start * PAGE_SIZE : end * PAGE_SIZE]
        if len(self._unique) >= FRAME_CONTENT:
            self._blob.put(self._unique[:FRAME_CONTENT])
            del self._unique[:FRAME_CONTENT]
        return None


def _page_digests(batch: bytearray) -> list[bytes]:
    view = memoryview(batch)
    starts = range(0, len(view), PAGE_SIZE)
    return [hashlib.sha256(view[start : start + PAGE_SIZE]).digest() for start in starts]


def _ranges(positions: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs of consecutive numbers in ascending *positions*, as start and end."""
    start = end = -1
    for position in positions:
        if position != end:
            if end > start:
                yield start, end
            start = position
        end = position + 1
    if end > start:
        yield start, end
