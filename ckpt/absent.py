"""Which pages of a process have not arrived yet, as its memory changes. Pure.

What is absent is a Copied: ranges of addresses, each with the number of its first page in the
archive. All else of the memory that is watched is there, or is zeros.

The kernel tells of a change after it was made, and of those that several threads make at once in no
certain order: a thread may tell late that it has unmapped what another one, to which the kernel has
given these addresses meanwhile, has told to be its own. So all changes of which nobody could know
that they had been made are looked at together. What is moved is then what was there before all of
them, and what is freed is free before anything is moved there. One thing is not told: a mapping may
have grown at its end into what was freed, and have been changed there. So two changes may be about
the same addresses, and which of them came first is to be seen by what is there after all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ckpt.copied import Copied
from ckpt.model import PAGE_SIZE
from ckpt.userfault import Change, Fork, Remap, Remove, Unmap

Span = tuple[int, int]
"""First address, and the one after the last."""

_NOTHING: Final = (0, 0)


class Ambiguous(Exception):  # noqa: N818 (a finding)
    """It cannot be told in which order things have happened, and it matters."""


def after(absent: Copied, changes: Sequence[Change], has: Callable[[int], bool]) -> Copied:
    """Return what is absent after *changes*.

    Args:
        absent: before them.
        changes: of which nobody knew that they had been made; in the order of one thread.
        has: is there memory that is watched at that address, after all of them?

    Raises:
        Ambiguous: this can have come about in two ways.
    """
    new = absent.copy()
    for change in changes:
        new.cut(*_left(change))
    for change in changes:
        if isinstance(change, Remap):
            new.cut(*_reached(change))
            shift = change.to - change.source
            for start, end, first in _moved(absent, change, changes, has):
                new.put(start + shift, end + shift, first)
    return new


def _moved(
    absent: Copied, remap: Remap, changes: Sequence[Change], has: Callable[[int], bool]
) -> Iterator[tuple[int, int, int]]:
    """Yield what was absent of what *remap* has moved."""
    own, source = absent.copy(), _left(remap)
    others = [change for change in changes if change is not remap]
    trailing = next((c for c in others if isinstance(c, Unmap) and _left(c) == source), None)
    taken = [_reached(change) for change in changes]
    for change in others:
        span = _left(change)
        if change is trailing or next(_stored(absent, *_common(span, source)), None) is None:
            continue
        if isinstance(change, Remove):
            came_first = not has(max(span[0], source[0]))
        else:
            came_first = _is_first(span, source, taken, has)
        if came_first:
            own.cut(*span)  # the mapping that was moved had grown into it
    return _stored(own, *source)


def _is_first(one: Span, other: Span, taken: Sequence[Span], has: Callable[[int], bool]) -> bool:
    """Was *one* given up before *other* was, which overlap?

    The second time they had been grown into, from below: a mapping begins where it has always
    begun, or where it was moved to, which is told. So if the one that begins higher was the second
    one, the memory just below it is there; else it has gone with the one that begins lower.

    Args:
        one: what was unmapped or moved away.
        other: the same, by another thread.
        taken: where something was moved to.
        has: is there memory that is watched at that address, after all of that?

    Raises:
        Ambiguous: both begin at one address.
    """
    if one[0] == other[0]:
        raise Ambiguous("two threads have given up the same memory")
    at = max(one[0], other[0])
    is_taken = any(start <= at < end for start, end in taken)
    higher_was_last = has(at - PAGE_SIZE) and (is_taken or not has(at))
    return (one[0] < other[0]) == higher_was_last


def of_child(absent: Copied, changes: Sequence[Change], has: Callable[[int], bool]) -> Copied:
    """Return what is absent in a child that was forked beside *changes*.

    Which of them came before it is told by what it has: a child that has the memory was forked
    before that was unmapped or moved away.

    Args:
        absent: in its parent before them.
        changes: those to the parent's memory.
        has: does the child have memory that is watched at that address?

    Raises:
        Ambiguous: what it has can have come about in two ways.
    """
    before = [c for c in changes if _is_before(c, absent, changes, has)]
    return after(absent, before, has)


def _is_before(
    change: Change, absent: Copied, changes: Sequence[Change], has: Callable[[int], bool]
) -> bool:
    """Was *change* made before the fork? So it was if another one was that has used its place."""
    if isinstance(change, Fork | Remove):
        return False  # who does not wait for it may find both what was and zeros
    left = _left(change)
    touched = next(_stored(absent, *left), None)
    if isinstance(change, Remap):
        if touched and not any(isinstance(c, Unmap) and _left(c) == left for c in changes):
            raise Ambiguous("memory was moved and stays mapped (MREMAP_DONTUNMAP) beside a fork")
    elif touched is None:
        return False
    others = [c for c in changes if _common(_reached(c), left) != _NOTHING]
    rest = [c for c in changes if c is not change]  # nothing can follow from itself
    if any(_is_before(other, absent, rest, has) for other in others if other is not change):
        return True
    return not has(touched[0] if touched else left[0])


def clash(first: Change, others: Sequence[Change]) -> bool:
    """Does it matter whether *first* was known to have been made before the *others* were?"""
    if isinstance(first, Fork):
        return any(not isinstance(other, Fork | Remove) for other in others)
    mine = (_left(first), _reached(first))
    theirs = [span for other in others for span in (_left(other), _reached(other))]
    return any(_common(one, other) != _NOTHING for one in mine for other in theirs)


def look(absent: Copied, address: int, most: int) -> tuple[int, int] | None:
    """Return the first page and how many bytes, up to *most*, are to be at *address*.

    None: it is zeros.
    """
    for at, end, first in absent.look(address, address + most):
        return None if first is None else (first, end - at)
    return None


def _left(change: Change) -> Span:
    """Return the range that has nothing any more of what was there; that of a Fork is empty."""
    match change:
        case Remap(source, _, length):
            return source, source + length
        case Remove(start, end) | Unmap(start, end):
            return start, end
    return _NOTHING


def _reached(change: Change) -> Span:
    """Return the range in which something else is now."""
    return (change.to, change.to + change.length) if isinstance(change, Remap) else _NOTHING


def _common(one: Span, other: Span) -> Span:
    start, end = max(one[0], other[0]), min(one[1], other[1])
    return (start, end) if start < end else _NOTHING


def _stored(absent: Copied, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    for at, stop, first in absent.look(start, end):
        if first is not None:
            yield at, stop, first
