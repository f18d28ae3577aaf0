"""Kept checkpoints: which one a time means, which may go, when the next is due. Pure.

Checkpoints are ordered by their numbers, in which they were taken, and never by their times: the
clock may have been set in between.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, time, timedelta
from typing import Final

from msgspec import Struct

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN: Final = re.compile(r"([0-9]{1,9})([smhd])")


class Taken(Struct, frozen=True):
    """A kept checkpoint.

    Attributes:
        number: 1, 2, 3, …: in which order they were taken.
        at: when, in seconds since the epoch, as the clock was then.
        pinned: it is to stay.
        since: number of the whole one that it builds upon; None: it is whole itself.
    """

    number: int
    at: int
    pinned: bool = False
    since: int | None = None


def newest_at(known: Iterable[Taken], moment: float) -> Taken | None:
    """Return the newest of *known* that was taken at or before *moment*, seconds since the epoch.

    One that a clock running ahead has dated later is left out, which errs to the older.
    """
    before = [one for one in known if one.at <= moment]
    return max(before, key=_which, default=None)


def expendable(
    known: Iterable[Taken],
    keep: int,
    in_use: Collection[int],
    is_good: Callable[[Taken], bool],
) -> list[Taken]:
    """Return those of *known* that may be deleted, the oldest first.

    The *keep* newest that are not pinned stay, and all that are pinned or in use. The newest good
    one stays, too; as long as none is known to be good, all do. What one that stays builds upon
    stays with it.

    Args:
        known: all there are.
        keep: 1 or more.
        in_use: their numbers.
        is_good: reads one from end to end, and what it builds upon; asked from the newest on,
            until one is, and only if there is something to delete.
    """
    newest_first = sorted(known, key=_which, reverse=True)
    surplus = [one for one in newest_first if not one.pinned][keep:]
    surplus = [one for one in surplus if one.number not in in_use]
    if not surplus:
        return []
    good = next(filter(is_good, newest_first), None)
    if good is None:
        return []
    gone = [one for one in reversed(surplus) if one != good]
    needed = {one.since for one in newest_first if one not in gone}
    return [one for one in gone if one.number not in needed]


def to_build_upon(known: Collection[Taken], whole_every: int) -> Taken | None:
    """Return what the next one is to build upon: the newest whole one; None: it is to be whole.

    Args:
        known: all there are.
        whole_every: one in so many is whole, or more.
    """
    whole = max((one for one in known if one.since is None), key=_which, default=None)
    number = 1 + max((one.number for one in known), default=0)
    return whole if whole and number - whole.number < whole_every else None


def missing(own: Iterable[Taken], stored: Collection[Taken], keep: int) -> list[Taken]:
    """Return those of *own* that are to be copied to where *stored* are, the oldest first.

    Those that would be expendable there are not, nor those that need another.
    """
    there = {_which(one) for one in stored}
    pending = [one for one in own if _which(one) not in there and one.since is None]
    both = sorted([*stored, *pending], key=_which, reverse=True)
    newest = [_which(one) for one in both if not one.pinned][:keep]
    wanted = [one for one in pending if one.pinned or _which(one) in newest]
    return sorted(wanted, key=_which)


def renumbered(
    pending: Iterable[Taken], own: Iterable[Taken], stored: Iterable[Taken]
) -> dict[int, int | None]:
    """Return new numbers for those of *pending* that need one, by their numbers.

    Other hosts that had the pod have counted, too. What is taken later has the higher number, and
    that is told by the time: it is the only thing that hosts have in common. None: somebody else
    has taken a later one already, or ours would change their order; it stays with its host.

    Args:
        pending: of this host, not stored yet.
        own: all of this host.
        stored: all that are stored, of this host and of others.
    """
    own, stored = list(own), list(stored)
    mine = {_which(one) for one in own}
    others = [one for one in stored if _which(one) not in mine]
    given: dict[int, int | None] = {}
    last = 0
    for one in sorted(pending, key=_which):
        before = max((other.number for other in others if other.at <= one.at), default=0)
        number = max(one.number, before + 1, last + 1)
        if any(other.at > one.at and other.number >= one.number for other in others):
            given[one.number] = None
            continue
        if number != one.number:
            there = set(map(_which, stored))
            settled = [o.number for o in own if _which(o) in there or o.since is not None]
            movable = one.number > max(settled, default=0)
            given[one.number] = number if movable else None
        last = number
    return given


def _which(one: Taken) -> tuple[int, int]:
    return one.number, one.at


def spans(numbers: Iterable[int]) -> str:
    """Return ascending *numbers* in words: 1, 3 to 6."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join(" to ".join(map(str, span)) for span in found)


def next_due(due: float, interval: float, now: float) -> float:
    """Return when the next checkpoint is due, in seconds of a clock that nobody sets.

    Args:
        due: when the last one was.
        interval: from one to the next.
        now: what was missed until now is not made up for.
    """
    return due + interval * max(1, int((now - due) // interval) + 1)


def parse_span(text: str) -> int:
    """Return the seconds that *text* means: 90s, 10m, 2h, 7d.

    Raises:
        ValueError: it is not of that form, or 0.
    """
    span = _SPAN.fullmatch(text)
    if span is None or not int(span[1]):
        raise ValueError(f"{text!r} is no length of time: use 90s, 10m, 2h, 7d")
    return int(span[1]) * _UNITS[span[2]]


def parse_moment(text: str, now: datetime) -> datetime:
    """Return the moment that *text* means; without a time zone where it is local time.

    Args:
        text: RFC 3339, or a date and time without a zone, or a time (of the day of *now*), or a
            length of time (that long ago).
        now: with the local time zone.

    Raises:
        ValueError: it is none of these.
    """
    try:
        if _SPAN.fullmatch(text):
            return now - timedelta(seconds=parse_span(text))
        if "-" not in text:
            return datetime.combine(now.date(), time.fromisoformat(text))
        return datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        forms = "2026-11-27T09:00:00Z, '2026-11-27 10:00', 10:00, or 2h for two hours ago"
        raise ValueError(f"{text!r} is no time: use {forms}") from None


def numbered(known: Sequence[Taken], number: int) -> Taken | None:
    """Return the one with that number."""
    return next((one for one in known if one.number == number), None)
