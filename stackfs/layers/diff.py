"""What layers change of the layers below them."""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from stackfs.layers import whiteout
from stackfs.layers.layer import DIRECTORY, listing
from stackfs.layers.union import Entry, Kind, merge


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        kind: "A" added, "C" changed, "D" deleted.
        path: from the root, beginning with a slash.
        size: bytes of a file now, 0 of anything else, None where nothing is there.
        before: the same of what was there before.
    """

    kind: str
    path: bytes
    size: int | None
    before: int | None


def changes(written: list[int], lowers: list[int]) -> list[Change]:
    """Return the differences that layers make, by path.

    What a running pod removes meanwhile is left out.

    Args:
        written: O_PATH descriptors of the layers that are looked at, top first.
        lowers: the same of the layers below them.
    """
    found: list[Change] = []
    levels = [(_compare(b"", written, lowers), contextlib.ExitStack())]
    try:
        while levels:
            items, opened = levels[-1]
            try:
                item = next(items, None)
            except FileNotFoundError:
                item = None
            if isinstance(item, Change):
                found.append(item)
            elif item is not None:
                with contextlib.suppress(FileNotFoundError):
                    levels.append(item.enter())
            else:
                levels.pop()
                opened.close()
    finally:
        for _, opened in levels:
            opened.close()
    return found


def _compare(path: bytes, written: list[int], lowers: list[int]) -> Iterator["Change | _Below"]:
    """Compare one directory, given by its descriptors in each layer that has it."""
    visible = merge((fd, listing(fd)) for fd in written)
    below = merge((fd, listing(fd)) for fd in lowers)
    deleted = _deleted(written, below, visible)
    for name in sorted({*visible, *deleted}):
        at = path + b"/" + name
        entry, old = visible.get(name), below.get(name)
        size, before = _size(name, entry), _size(name, old)
        if entry is None or (old is not None and old.directory != entry.directory):
            yield Change("D", at, None, before)
            old = before = None
        if entry is None or size is None:
            continue
        yield Change("A" if old is None else "C", at, size, before)
        if entry.directory:
            yield _Below(at, entry.layers, () if old is None else old.layers)


@dataclass(frozen=True, slots=True)
class _Below:
    """A directory to be compared next; the descriptors are those of the one above."""

    path: bytes
    written: tuple[int, ...]
    lowers: tuple[int, ...]

    def enter(self) -> tuple[Iterator["Change | _Below"], contextlib.ExitStack]:
        """Return its differences, and what closes its descriptors."""
        name = self.path.rpartition(b"/")[2]
        with contextlib.ExitStack() as opened:
            written = _open_until_opaque(opened, self.written, name)
            lowers = _open_until_opaque(opened, self.lowers, name)
            return _compare(self.path, written, lowers), opened.pop_all()


def _size(name: bytes, entry: Entry[int] | None) -> int | None:
    if entry is None:
        return None
    try:
        status = os.stat(name, dir_fd=entry.layers[0], follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _deleted(
    written: list[int], below: dict[bytes, Entry[int]], visible: dict[bytes, Entry[int]]
) -> set[bytes]:
    """Return the names of the lower layers that do not show any more."""
    gone = set()
    for fd in written:
        names = listing(fd)
        gone |= {name for name, kind in names.items() if kind is Kind.WHITEOUT}
        if whiteout.opacity(fd) == b"y":
            gone |= set(below)
            break
    return {name for name in gone if name in below and name not in visible}


def _open_until_opaque(
    opened: contextlib.ExitStack, layers: tuple[int, ...], name: bytes
) -> list[int]:
    fds = []
    for layer in layers:
        fds.append(os.open(name, DIRECTORY, dir_fd=layer))
        opened.callback(os.close, fds[-1])
        if whiteout.opacity(fds[-1]) == b"y":
            break
    return fds
