"""What layers change of the layers below them."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from stackfs.layers import redirect
from stackfs.layers.layer import listing
from stackfs.layers.redirect import Path, Way
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
    comparison = _Comparison([*written, *lowers], len(written))
    levels = [comparison.root()]
    try:
        while levels:
            level = levels[-1]
            item: Change | bytes | None = None
            with contextlib.suppress(FileNotFoundError):
                item = next(level.items, None)
            if isinstance(item, Change):
                found.append(item)
            elif item is not None:
                levels.append(comparison.enter(level, item))
            else:
                levels.pop().close()
    finally:
        for level in levels:
            level.close()
    return found


class _Level:
    """A directory that is compared.

    Attributes:
        path: of it.
        now: its descriptors by layer.
        before: those of what was there before, in the lower layers.
        former: its path in what the lower layers show, None if nothing of them shows in it.
        items: what is left: differences, and names of directories to be compared.
    """

    def __init__(
        self, path: Path, now: dict[int, int], before: dict[int, int], former: Path | None
    ) -> None:
        self.path = path
        self.now = now
        self.before = before
        self.former = former
        self.items: Iterator[Change | bytes] = iter(())

    def close(self) -> None:
        redirect.close(self.now)
        redirect.close(self.before)


class _Comparison:
    """The layers: those that were written, *count* of them, above the lower ones."""

    def __init__(self, roots: list[int], count: int) -> None:
        self._roots = roots
        self._count = count
        self._layers = range(len(redirect.until_opaque(roots)))
        self._lowers = range(count, count + len(redirect.until_opaque(roots[count:])))

    def root(self) -> _Level:
        now = {layer: os.dup(self._roots[layer]) for layer in self._layers}
        before = {layer: os.dup(self._roots[layer]) for layer in self._lowers}
        former = None if len(self._layers) <= self._count and self._lowers else ()
        return self._begin(_Level((), now, before, former))

    def enter(self, above: _Level, name: bytes) -> _Level:
        """Return a directory of *above*."""
        way = Way((name,))
        now = way.descend(self._roots, above.now, self._layers[: self._count])
        former = way.path if way.absolute else None
        if not way.absolute and above.former is not None:
            former = above.former + way.path
        if way.ended:
            former = None
        level = _Level((*above.path, name), now, {}, former)
        try:
            now |= way.descend(self._roots, above.now, self._layers[self._count :])
            level.before = Way((name,)).descend(self._roots, above.before, self._lowers)
        except BaseException:
            level.close()
            raise
        return self._begin(level)

    def _begin(self, level: _Level) -> _Level:
        level.items = self._compare(level)
        return level

    def _compare(self, level: _Level) -> Iterator[Change | bytes]:
        """Yield the differences in one directory, and the directories in it."""
        # What the lower layers show under the same path has not changed.
        apart = level.former != level.path
        looked = [at for at in level.now if apart or at < self._count]
        listings = {at: listing(level.now[at]) for at in looked}
        visible = merge(listings.items())
        below = merge((at, listing(fd)) for at, fd in level.before.items())
        gone = set(below) if apart else _whited_out(listings.values())
        for name in sorted({*visible, *(gone & below.keys())}):
            path = b"/" + b"/".join((*level.path, name))
            entry, old = visible.get(name), below.get(name)
            size, before = _size(level.now, name, entry), _size(level.before, name, old)
            if entry is None or (old is not None and old.directory != entry.directory):
                yield Change("D", path, None, before)
                old = before = None
            if entry is None or size is None:
                continue
            yield Change("A" if old is None else "C", path, size, before)
            if entry.directory:
                yield name


def _whited_out(listings: Iterable[Mapping[bytes, Kind]]) -> set[bytes]:
    found = set()
    for names in listings:
        found |= {name for name, kind in names.items() if kind is Kind.WHITEOUT}
    return found


def _size(places: Mapping[int, int], name: bytes, entry: Entry[int] | None) -> int | None:
    if entry is None:
        return None
    try:
        status = os.stat(name, dir_fd=places[entry.layers[0]], follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
