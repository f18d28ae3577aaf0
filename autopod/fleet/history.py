"""What has happened in a fleet: entries that are written in the transaction of what they tell."""

import os
import time
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from autopod.fleet.store import Delete, Put, Store, decode

KEPT: Final = 500
_PREFIX: Final = "/events/"


class Happened(Struct, frozen=True):
    """Something that has happened.

    Attributes:
        at: when, by the clock of the host that wrote it.
        host: that it is about, or whatever takes slots.
        kind: as "joined", "slot".
        text: for people.
    """

    at: datetime
    host: str
    kind: str
    text: str


def told(host: str, kind: str, text: str) -> Put:
    """Return what writes down that something has happened, for the transaction that does it."""
    moment = time.time_ns()
    event = Happened(datetime.fromtimestamp(moment // 10**9, UTC), host, kind, text)
    return Put(f"{_PREFIX}{moment:020}-{os.urandom(4).hex()}", msgspec.json.encode(event))


async def read(store: Store) -> list[Happened]:
    """Return what has happened, the oldest first.

    Raises:
        FleetError: it cannot be told.
    """
    found = (await store.scan(_PREFIX)).entries
    return [decode(entry, Happened) for entry in found]


async def prune(store: Store) -> None:
    """Let the oldest go that are too many.

    Raises:
        FleetError: they stay.
    """
    found = (await store.scan(_PREFIX)).entries
    old = [Delete(entry.key) for entry in found[:-KEPT]]
    if old:
        await store.apply([], old[:100])
