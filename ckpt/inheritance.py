"""What a process keeps of the memory that it was cloned with. Pure.

A process that has forked shares pages with its children until one of them writes. They are shared
again after a restart if the child is cloned when its parent has its memory, and is given only what
is different: else workers that share a gigabyte would need one each. Whether pages were the same
is told by their content, which the archive stores once.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec import Struct

from ckpt.kinds.memory import Mapping, Run, State
from ckpt.model import PAGE_SIZE

Unique = Callable[[int, int], Iterable[tuple[int, int]]]
"""What pages are, by their first number and how many they are: runs of unique pages."""

_NOT_INHERITED: Final = {"dontfork", "wipeonfork"}


class Kept(Struct, frozen=True):
    """A mapping that a process need not make; its protection may be another.

    Attributes:
        held: the one that it was cloned with.
        own: the one that it is to have, which lies in *held*.
    """

    held: Mapping
    own: Mapping


class Changes(Struct, frozen=True):
    """How the pages of a mapping that is kept become those that are wanted.

    Attributes:
        written: pages to be written.
        dropped: ranges of addresses without pages of the process's own.
    """

    written: list[Run]
    dropped: list[tuple[int, int]]


class _Piece(Struct, frozen=True):
    """Pages at *start* to *end*, which are stored from page *first* on.

    Attributes:
        content: where the unique pages begin, less *start*: the same for the same at one address.
    """

    start: int
    end: int
    first: int
    content: int


def kept(held: State, own: State) -> list[Kept]:
    """Return the mappings that are there already; none in another program's memory."""
    if held.executable != own.executable:
        return []
    starts = [m.start for m in held.mappings]
    found = []
    for mapping in own.mappings:
        index = bisect_right(starts, mapping.start) - 1
        if index >= 0 and _is_within(mapping, held.mappings[index]):
            found.append(Kept(held.mappings[index], mapping))
    return found


def _is_within(own: Mapping, held: Mapping) -> bool:
    return (
        own.end <= held.end
        and own.shared == held.shared
        and own.file == held.file
        and (own.file is None or own.offset - held.offset == own.start - held.start)
        and own.flags == held.flags
        and own.advice == held.advice
        and own.name == held.name
        and not (own.huge or held.huge or own.attachment or held.attachment)
        and "droppable" not in own.flags
        and _NOT_INHERITED.isdisjoint(own.advice)
    )


def changes(pair: Kept, unique: Unique) -> Changes:
    """Return what is to be done to the pages of a mapping that is kept."""
    held = list(_clip(_pieces(pair.held.runs, unique), pair.own.start, pair.own.end))
    own = list(_pieces(pair.own.runs, unique))
    written = [
        Run(start, (end - start) // PAGE_SIZE, piece.first + (start - piece.start) // PAGE_SIZE)
        for piece, start, end in _without(own, held, same=True)
    ]
    dropped = [(start, end) for _, start, end in _without(held, own, same=False)]
    return Changes(written, dropped)


def common(pair: Kept, unique: Unique) -> int:
    """Return how many pages of a mapping that is kept are there already."""
    written = changes(pair, unique).written
    return sum(run.count for run in pair.own.runs) - sum(run.count for run in written)


def _pieces(runs: Iterable[Run], unique: Unique) -> Iterator[_Piece]:
    for run in runs:
        at, first = run.address, run.first
        for content, count in unique(run.first, run.count):
            end = at + count * PAGE_SIZE
            yield _Piece(at, end, first, content - at // PAGE_SIZE)
            at, first = end, first + count


def _clip(pieces: Iterable[_Piece], start: int, end: int) -> Iterator[_Piece]:
    for piece in pieces:
        low, high = max(start, piece.start), min(end, piece.end)
        if low < high:
            first = piece.first + (low - piece.start) // PAGE_SIZE
            yield _Piece(low, high, first, piece.content)


def _without(
    pieces: list[_Piece], others: list[_Piece], *, same: bool
) -> Iterator[tuple[_Piece, int, int]]:
    """Yield the parts of *pieces* where there are no *others*; or, if *same*, other contents.

    Both are in the order of their addresses, without overlaps.
    """
    index = 0
    for piece in pieces:
        at = piece.start
        while index < len(others) and others[index].end <= at:
            index += 1
        number = index
        while number < len(others) and others[number].start < piece.end:
            other = others[number]
            number += 1
            if same and other.content != piece.content:
                continue
            if at < other.start:
                yield piece, at, other.start
            at = min(other.end, piece.end)
        if at < piece.end:
            yield piece, at, piece.end
