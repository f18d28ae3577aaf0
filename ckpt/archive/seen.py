"""What of an archive's pages was hashed as they came: verified, they need not be read again."""

import hashlib
from typing import Final

from ckpt.archive.container import BLOCK, read_exactly

PAGES_AT: Final = 3 * BLOCK
"""Where the pages begin: behind a member, and their header."""

_STEP: Final = 4 << 20


class Seen:
    """The SHA-256 of the first pages, while the archive is being written to a file."""

    def __init__(self) -> None:
        self._hash, self._next = hashlib.sha256(), PAGES_AT

    def add(self, data: bytes, offset: int) -> None:
        """Hash *data*, pages and what may stand before them, if it comes next: at *offset*."""
        if offset <= self._next:
            self._hash.update(memoryview(data)[self._next - offset :])
            self._next = max(self._next, offset + len(data))

    def digest(self, fd: int, start: int, size: int) -> str:
        """Return the digest of *size* bytes from *start* on, reading of *fd* what is not seen yet.

        Returns:
            As schema.digest() writes it.

        Raises:
            FormatError: the file ends before.
        """
        here, end = self, start + size
        if start != PAGES_AT or end < self._next:
            here = Seen()  # whatever that was, it was not this
            here._next = start
        for at in range(here._next, end, _STEP):
            here._hash.update(read_exactly(fd, at, min(_STEP, end - at)))
        return f"sha256:{here._hash.hexdigest()}"
