"""The writer's two lower levels: members of the tar, and framed blobs in them.

A blob's name is its digest and its header stands before it, so the header is written when the blob
has ended; that is why an archive is written to a file and never to a pipe.
"""

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from ckpt.archive import container, frames
from ckpt.archive.crypt import BlobCipher
from ckpt.archive.schema import Descriptor, Framed

AHEAD: Final = 6
"""Pieces of 4 MiB in flight in a stage: bounds our memory, and keeps the workers busy."""


class TarWriter:
    """The tar being written to the start of an empty file. A blob is stored once."""

    def __init__(self, fd: int, path: Path) -> None:
        """Write to *fd*, which stays the caller's; *path* is for errors."""
        self._fd, self._path = fd, path
        self._end = 0  # where the next member's header goes
        self._blobs: set[str] = set()
        self._hash = hashlib.sha256()
        self._size = 0

    @property
    def written(self) -> int:
        """Bytes at the start that stay as they are, but for the header of a blob not ended."""
        return self._end + (container.BLOCK + self._size if self._size else 0)

    def add_member(self, name: str, data: bytes) -> None:
        """Write a whole member."""
        self._write(container.header(name, len(data)) + data, self._end)
        self._close_member(len(data))

    def add_blob(self, media_type: str, data: bytes) -> Descriptor:
        """Write a whole blob."""
        self.append(data)
        return self.end_blob(media_type)

    def append(self, data: bytes) -> None:
        """Write more of the blob that end_blob() will end."""
        self._write(data, self._end + container.BLOCK + self._size)
        self._hash.update(data)
        self._size += len(data)

    def end_blob(self, media_type: str, annotations: dict[str, str] | None = None) -> Descriptor:
        """End the blob. One that is there already is not kept twice."""
        hexdigest, size = self._hash.hexdigest(), self._size
        self._hash, self._size = hashlib.sha256(), 0
        if hexdigest not in self._blobs:
            self._blobs.add(hexdigest)
            self._write(container.header(f"blobs/sha256/{hexdigest}", size), self._end)
            self._close_member(size)
        return Descriptor(media_type, f"sha256:{hexdigest}", size, annotations or {})

    def end(self) -> int:
        """Write the end of the tar; return the size of the file."""
        os.ftruncate(self._fd, self._end)  # what a blob that is not kept left behind
        size = self._end + 2 * container.BLOCK
        os.ftruncate(self._fd, size)
        return size

    def _close_member(self, size: int) -> None:
        """Move behind a member, over padding."""
        content_end = self._end + container.BLOCK + size
        self._write(bytes(container.padding(size)), content_end)
        self._end = content_end + container.padding(size)

    def _write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                offset, view = offset + written, view[written:]
        except OSError as e:
            e.filename = os.fspath(self._path)
            raise


class FrameWriter:
    """A framed blob being written, compressed, and encrypted, by the workers of *pool*."""

    def __init__(
        self, tar: TarWriter, pool: ThreadPoolExecutor, cipher: BlobCipher | None = None
    ) -> None:
        self._tar, self._pool, self._cipher = tar, pool, cipher
        self._count = 0
        self._pending: deque[Future[tuple[bytes, bytes]]] = deque()
        self._table = bytearray()
        self._length = 0

    def put(self, content: bytes | bytearray) -> None:
        """Add content: frames.FRAME_CONTENT bytes, or fewer if they are the last.

        Takes *content*: the caller does not change it any more.
        """
        self._length += len(content)
        seal = partial(self._cipher.seal, self._count) if self._cipher else bytes
        self._count += 1
        self._pending.append(self._pool.submit(frames.compress, content, seal))
        if len(self._pending) > AHEAD:
            self._store()

    def settle(self) -> None:
        """Write what was added so far."""
        while self._pending:
            self._store()

    def finish(
        self, media_type: str, annotations: dict[str, str] | None = None
    ) -> tuple[Descriptor, Framed]:
        """End the blob; return what it is, and how it is cut."""
        self.settle()
        descriptor = self._tar.end_blob(media_type, annotations)
        return descriptor, Framed(self._length, bytes(self._table))

    def _store(self) -> None:
        frame, entry = self._pending.popleft().result()
        self._tar.append(frame)
        self._table += entry
