"""`autopod fleet`: all that a fleet keeps, as data and in words."""

import msgspec
from msgspec import Struct

from autopod import overview
from autopod.errors import Refused
from autopod.fleet import history, members, slots
from autopod.fleet.history import Happened
from autopod.fleet.members import Member
from autopod.fleet.slots import Holder
from autopod.fleet.store import Store

_SHOWN = 20


class Fleet(Struct, frozen=True):
    """What is known of a fleet.

    Attributes:
        members: that are there.
        slots: who has one, by group.
        events: what has happened, the oldest first.
    """

    members: list[Member]
    slots: dict[str, list[Holder]]
    events: list[Happened]


async def gather(store: Store) -> Fleet:
    """Ask for it.

    Raises:
        FleetError: it cannot be told.
    """
    return Fleet(
        await members.read(store), await slots.holders_of_all(store), await history.read(store)
    )


async def release(store: Store, who: str) -> list[str]:
    """Take all slots from *who*; return of which groups.

    Raises:
        Refused: it has none.
        FleetError: it may have some yet.
    """
    held = await slots.holders_of_all(store)
    groups = [group for group, holders in held.items() if who in {one.id for one in holders}]
    for group in groups:
        await slots.give(store, group, who)
    if not groups:
        raise Refused(f"{who!r} has no reboot slot", "see autopod fleet")
    return groups


def as_json(fleet: Fleet) -> str:
    """Return it as an object for a program."""
    return msgspec.json.format(msgspec.json.encode(fleet), indent=2).decode() + "\n"


def text(fleet: Fleet) -> str:
    """Return it for a person."""
    rows = [
        ("HOST", "ADDRESS", "GROUP", "SLOTS", "KERNEL", "FREE", "PODS"),
        *((
            one.name, one.address, one.group, str(one.slots), one.kernel,
            f"{one.memory_free >> 20} MiB", " ".join(one.pods) or "-",
        ) for one in fleet.members),
    ]  # fmt: skip
    lines = [
        f"slot of {group}: {one.id} since {one.since:%F %R} UTC\n"
        for group, holders in fleet.slots.items()
        for one in holders
    ]
    events = [f"{one.at:%F %T} {one.kind}: {one.text}\n" for one in fleet.events[-_SHOWN:]]
    return "".join([overview.columns(rows), *lines, *events])
