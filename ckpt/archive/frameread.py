"""Reading framed blobs: any frame alone, the next ones ahead in worker threads.

A frame is read into memory, compared with its digest there, and decompressed from there.
"""

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from ckpt.archive import frames
from ckpt.archive.container import read_exactly
from ckpt.archive.crypt import BlobCipher
from ckpt.archive.errors import FormatError
from ckpt.archive.frames import Frame
from ckpt.archive.pages import PageMap
from ckpt.model import PAGE_SIZE
from ckpt.progress import Progress

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_FRAME_PAGES: Final = frames.FRAME_CONTENT // PAGE_SIZE
_CACHED: Final = 8
_AHEAD: Final = 3


class Workers:
    """Threads that are started when they are first needed, in the process that opened the archive.

    A forked child reads without threads: it may be about to enter namespaces, or to fork again.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    @property
    def are_here(self) -> bool:
        """Is this the process in which they are?"""
        return self._pid == os.getpid()

    def submit(self, call: Callable[[int], bytes], number: int) -> "Future[bytes]":
        """Run call(number) in a thread."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "archive")
        return self._pool.submit(call, number)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None and self.are_here:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None


class FrameReader:
    """The frames of a blob by number, kept for a while; one thread calls."""

    def __init__(
        self,
        fd: int,
        offset: int,
        cut: list[Frame],
        name: str,
        workers: Workers,
        cipher: BlobCipher | None = None,
    ) -> None:
        """Read the blob at *offset* of *fd*, which stays the caller's; *name* is for errors."""
        self._fd, self._offset, self._name, self._workers = fd, offset, name, workers
        self._cipher = cipher
        self._cut = cut
        self._cache: OrderedDict[int, Future[bytes] | bytes] = OrderedDict()
        self._pid = os.getpid()
        self._last = -1

    def content(self, number: int) -> bytes:
        """Return the content of frame *number*.

        Raises:
            FormatError: the frame is not the signed one.
        """
        if self._pid != os.getpid():  # what the parent's threads were to bring never comes
            self._cache.clear()
            self._pid = os.getpid()
        if number not in self._cache:
            self._cache[number] = self._load(number)
        if number and number == self._last + 1 and self._workers.are_here:
            self._read_ahead(number + 1)
        self._last = number
        return self._take(number)

    def begin(self) -> None:
        """Have worker threads begin with the first frames, as many as are kept."""
        for number in range(min(_CACHED, len(self._cut))):
            self._cache[number] = self._workers.submit(self._load, number)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the contents of all frames."""
        return (self.content(number) for number in range(len(self._cut)))

    def check(self, progress: Progress) -> None:
        """Compare each frame with its digest; nothing is decrypted or decompressed.

        Raises:
            Damaged: a frame is not the signed one.
        """
        running: deque[Future[bytes]] = deque()
        for number in range(len(self._cut)):
            if len(running) > _AHEAD:
                running.popleft().result()
            running.append(self._workers.submit(self._check, number))
            progress.advance(self._cut[number].length)
        while running:
            running.popleft().result()

    def _check(self, number: int) -> bytes:
        try:
            frames.check(self._cut[number], self._read(number))
        except FormatError as e:
            raise type(e)(f"{self._name}, frame {number}: {e}") from e
        return b""

    def raw(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each frame's bytes and its content, for a check of the whole blob."""
        for number in range(len(self._cut)):
            data = self._read(number)
            yield data, self._decompress(number, data)

    def _take(self, number: int) -> bytes:
        found = self._cache[number]
        content = found if isinstance(found, bytes) else found.result()
        self._cache[number] = content
        self._cache.move_to_end(number)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return content

    def _read_ahead(self, first: int) -> None:
        for number in range(first, min(first + _AHEAD, len(self._cut))):
            if number not in self._cache:
                self._cache[number] = self._workers.submit(self._load, number)

    def _load(self, number: int) -> bytes:
        return self._decompress(number, self._read(number))

    def _read(self, number: int) -> bytes:
        frame = self._cut[number]
        return read_exactly(self._fd, self._offset + frame.offset, frame.size)

    def _decompress(self, number: int, data: bytes) -> bytes:
        try:
            unseal = partial(self._cipher.open, number) if self._cipher else bytes
            return frames.decompress(self._cut[number], data, unseal)
        except FormatError as e:
            raise type(e)(f"{self._name}, frame {number}: {e}") from e


class PageReader:
    """The page sequence of an archive.

    Attributes:
        count: pages in it.
        unique: pages with different contents that the archive has itself.
    """

    def __init__(
        self,
        contents: FrameReader,
        packed_map: bytes,
        unique: int,
        earlier: "PageReader | None" = None,
    ) -> None:
        """Read the *unique* unique pages of *contents*, and those of an *earlier* archive.

        Raises:
            FormatError: the map is not one of these pages.
        """
        self._contents, self._earlier, self.unique = contents, earlier, unique
        self._below = earlier.unique if earlier else 0
        self._map = PageMap(packed_map, unique, self._below)
        self.count = self._map.count

    def check(self, progress: Progress) -> None:
        """Compare all that read() can read with what was signed, in an earlier archive, too.

        Raises:
            Damaged: it is not that.
        """
        if self._earlier:
            self._earlier.check(progress)
        self._contents.check(progress)

    def begin(self) -> None:
        """Begin with the first pages in worker threads: soon they will be read."""
        self._contents.begin()

    def read(self, first: int, count: int) -> bytes:
        """Return *count* pages from number *first* on.

        Raises:
            IndexError: there are no such pages.
            FormatError: what the archive has there is not what was signed.
        """
        return b"".join(self._pieces(first, count))

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Yield what *count* pages from *first* on are: first unique page, number of pages.

        Raises:
            IndexError: there are no such pages.
        """
        return self._map.runs(first, count)

    def _pieces(self, first: int, count: int) -> Iterator[memoryview]:
        for unique, run in self._map.runs(first, count):
            own = max(unique, self._below)  # from here on they are this archive's
            if self._earlier and unique < own:
                yield from self._earlier.contents(unique, min(own, unique + run))
            yield from self.contents(own - self._below, unique + run - self._below)

    def contents(self, page: int, end: int) -> Iterator[memoryview]:
        """Yield the contents of the archive's own unique pages from *page* to *end*, in pieces."""
        while page < end:
            frame, start = divmod(page, _FRAME_PAGES)
            stop = min(_FRAME_PAGES, start + end - page)
            content = memoryview(self._contents.content(frame))
            yield content[start * PAGE_SIZE : stop * PAGE_SIZE]
            page += stop - start
