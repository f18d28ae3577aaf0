"""When a host may be worked on: maintenance windows and blackouts. Pure."""

import re
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from launcher.toml import Table, reject

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

_DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


class Window(Table, frozen=True):
    """Hours of some days of each week.

    Attributes:
        days: on which it begins.
        begins: `HH:MM`.
        ends: likewise, of the next day where that is not after the beginning.
        zone: as "Europe/Berlin"; the clock is that zone's.
    """

    begins: str = msgspec.field(name="from")
    ends: str = msgspec.field(name="to")
    days: list[Day] = msgspec.field(default_factory=lambda: list(_DAYS))
    zone: str = "UTC"

    def __post_init__(self) -> None:
        for key, text in (("from", self.begins), ("to", self.ends)):
            if not _CLOCK.fullmatch(text):
                reject(key, text, "use HH:MM")
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            reject("zone", self.zone, "there is no such time zone; use one like Europe/Berlin")

    def holds(self, now: datetime) -> bool:
        """Is *now* in it? It may have begun yesterday."""
        there = now.astimezone(ZoneInfo(self.zone))
        begins, ends = time.fromisoformat(self.begins), time.fromisoformat(self.ends)
        clock = there.time().replace(tzinfo=None)
        today, yesterday = there.date(), there.date() - timedelta(1)
        if begins < ends:
            return _DAYS[today.weekday()] in self.days and begins <= clock < ends
        started = _DAYS[today.weekday()] in self.days and clock >= begins
        return started or (_DAYS[yesterday.weekday()] in self.days and clock < ends)


class Blackout(Table, frozen=True):
    """A time, once.

    Attributes:
        begins: with its offset from UTC.
        ends: likewise.
        reason: for people.
    """

    begins: datetime = msgspec.field(name="from")
    ends: datetime = msgspec.field(name="to")
    reason: str = ""

    def __post_init__(self) -> None:
        for key, moment in (("from", self.begins), ("to", self.ends)):
            if moment.tzinfo is None:
                reject(key, moment.isoformat(), "it lacks the offset from UTC, like Z or +01:00")
        if self.ends <= self.begins:
            reject("to", self.ends.isoformat(), "it is over before it begins")


def against(windows: Sequence[Window], blackouts: Sequence[Blackout], now: datetime) -> str | None:
    """Return why a host may not be worked on *now*; None: it may."""
    for blackout in blackouts:
        if blackout.begins <= now < blackout.ends:
            return f"blackout until {blackout.ends.isoformat()}: {blackout.reason or 'no reason'}"
    if windows and not any(window.holds(now) for window in windows):
        return "outside of the maintenance windows"
    return None
