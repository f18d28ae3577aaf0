"""Reboot slots: of a group of hosts only so many are worked on at a time.

Who has a slot stands under the group's name, without a lease, so that it lasts through the reboot
that it is for. Who has one may take it again, who has none may give it back: both can be repeated.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from autopod.fleet import history
from autopod.fleet.store import Compare, Delete, FleetError, Put, Store, decode

_PREFIX: Final = "/slots/"
_TRIES: Final = 50


class Holder(Struct, frozen=True):
    """Who has a slot.

    Attributes:
        id: a host's name, or `fleetlock/ID`.
        since: by the clock of who took it.
    """

    id: str
    since: datetime


class NoSlot(FleetError):  # noqa: N818 (what is the case)
    """All slots of a group are taken."""


def with_one_more(
    holders: Sequence[Holder], who: str, limit: int, now: datetime
) -> list[Holder] | None:
    """Return the holders after *who* has asked for a slot; None: there is none. Pure."""
    if any(holder.id == who for holder in holders):
        return list(holders)
    if len(holders) >= limit:
        return None
    return [*holders, Holder(who, now)]


def without(holders: Sequence[Holder], who: str) -> list[Holder]:
    """Return the holders after *who* has given its slot back, if it had one. Pure."""
    return [holder for holder in holders if holder.id != who]


async def take(store: Store, group: str, who: str, limit: int) -> None:
    """Let *who* have a slot of *group*, which has *limit*; it may have one already.

    Raises:
        NoSlot: others have all.
        FleetError: it may have one, or not: give it back, or ask again.
    """
    for _ in range(_TRIES):
        holders, revision = await _read(store, group)
        after = with_one_more(holders, who, limit, datetime.now(UTC))
        if after is None:
            raise NoSlot(*_full(group, limit, holders))
        if after == holders:
            return
        if await _write(store, group, revision, after, f"{who} takes a slot of {group}"):
            return
    raise FleetError(f"slots of group {group!r}: others change them all the time")


async def give(store: Store, group: str, who: str) -> bool:
    """Take the slot from *who*; tell whether it had one.

    Raises:
        FleetError: it may have one yet.
    """
    for _ in range(_TRIES):
        holders, revision = await _read(store, group)
        after = without(holders, who)
        if after == holders:
            return False
        if await _write(store, group, revision, after, f"{who} gives back a slot of {group}"):
            return True
    raise FleetError(f"slots of group {group!r}: others change them all the time")


async def look(store: Store, group: str, who: str, limit: int) -> None:
    """See whether take() would succeed now.

    Raises:
        NoSlot, FleetError: it would not.
    """
    holders, _ = await _read(store, group)
    if with_one_more(holders, who, limit, datetime.now(UTC)) is None:
        raise NoSlot(*_full(group, limit, holders))


async def holders_of_all(store: Store) -> dict[str, list[Holder]]:
    """Return who has slots, by group.

    Raises:
        FleetError: it cannot be told.
    """
    found = (await store.scan(_PREFIX)).entries
    return {entry.key.removeprefix(_PREFIX): decode(entry, list[Holder]) for entry in found}


def _full(group: str, limit: int, holders: Sequence[Holder]) -> tuple[str, str]:
    who = ", ".join(f"{one.id} since {one.since:%F %R} UTC" for one in holders) or "nobody"
    hint = "autopod fleet release HOST, if one of them will not come back" if holders else ""
    return f"no reboot slot of group {group!r} is free, of {limit}: taken by {who}", hint


async def _read(store: Store, group: str) -> tuple[list[Holder], int]:
    entry = await store.get(_PREFIX + group)
    return (decode(entry, list[Holder]), entry.revision) if entry else ([], 0)


async def _write(
    store: Store, group: str, revision: int, holders: list[Holder], text: str
) -> int | None:
    key, who = _PREFIX + group, text.partition(" ")[0]
    change = Put(key, msgspec.json.encode(holders)) if holders else Delete(key)
    return await store.apply([Compare(key, revision)], [change, history.told(who, "slot", text)])
