"""The order in which names of a directory are told, so that a reader's position stays true.

A position is a number that follows from the name alone. So it means the same while other names
come and go, to the next daemon, and to a program that was moved to another machine and seeks in
the directory that was opened anew for it; nobody need remember what a reader was told.
"""

import bisect
import hashlib
import operator
from collections.abc import Iterable, Iterator
from typing import Final

_DOTS: Final = [(1, b"."), (2, b"..")]
_MOST: Final = 16
"""Directories whose order is remembered while they are read."""

_position = operator.itemgetter(0)


def position(name: bytes) -> int:
    """Return the position after *name*: a hash of 61 bits, so that hardly two have the same."""
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2 | 4


class Listings:
    """The orders of the directories that are being read, by inode number."""

    def __init__(self) -> None:
        self._orders: dict[int, list[tuple[int, bytes]]] = {}

    def after(self, ino: int, names: Iterable[bytes], start: int) -> Iterator[tuple[int, bytes]]:
        """Yield each name after position *start* with the position after it.

        A name that went since the beginning was read may be told, and one that came may not.

        Args:
            ino: of the directory.
            names: all of them, but for `.` and `..`.
            start: what a name was told with, or 0.
        """
        order = self._orders.pop(ino, None)
        if order is None or start == 0:
            order = _DOTS + sorted([(position(name), name) for name in names])
            if len(self._orders) == _MOST:
                del self._orders[next(iter(self._orders))]
        self._orders[ino] = order
        for index in range(bisect.bisect_right(order, start, key=_position), len(order)):
            yield order[index]
