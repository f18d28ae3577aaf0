"""What the layers that a pod wrote change of the layers below them."""

import os
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
    """

    kind: str
    path: bytes


def changes(written: list[int], lowers: list[int]) -> list[Change]:
    """Return the differences that layers make, by path.

    Args:
        written: O_PATH descriptors of the upper and sealed layers, top first.
        lowers: the same of the layers below them.
    """
    found: list[Change] = []
    _compare(found, b"", written, lowers)
    return found


def _compare(found: list[Change], path: bytes, written: list[int], lowers: list[int]) -> None:
    """Compare one directory, given by its descriptors in each layer that has it."""
    visible = merge((fd, listing(fd)) for fd in written)
    below = merge((fd, listing(fd)) for fd in lowers)
    deleted = _deleted(written, below, visible)
    for name in sorted({*visible, *deleted}):
        at = path + b"/" + name
        entry, old = visible.get(name), below.get(name)
        if entry is None or (old is not None and old.directory != entry.directory):
            found.append(Change("D", at))
            old = None
        if entry is None:
            continue
        found.append(Change("A" if old is None else "C", at))
        if entry.directory:
            _descend(found, at, entry, old)


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


def _descend(found: list[Change], path: bytes, entry: Entry[int], old: Entry[int] | None) -> None:
    name = path.rpartition(b"/")[2]
    written = _open_until_opaque(entry.layers, name)
    lowers = _open_until_opaque(old.layers, name) if old is not None else []
    try:
        _compare(found, path, written, lowers)
    finally:
        for fd in (*written, *lowers):
            os.close(fd)


def _open_until_opaque(layers: tuple[int, ...], name: bytes) -> list[int]:
    opened = []
    for fd in layers:
        opened.append(os.open(name, DIRECTORY, dir_fd=fd))
        if whiteout.opacity(opened[-1]) == b"y":
            break
    return opened
