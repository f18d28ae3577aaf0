"""Who looks for hosts that have died, and at what.

If each host looked at all others at each beat, the cost would grow with their square. So at each
beat only some hosts look, drawn by lot, at names alone: of the members, and of the hosts that may
have armed pods. Who has noticed that a host is away looks at that one until it is back, or has no
such pods any more. A fleet of a few hosts does not notice the difference: there all look.
"""

import random
from collections.abc import Callable
from typing import Final

from autopod.fleet import members, recovery
from autopod.fleet.recovery import Charge, Survey
from autopod.fleet.store import Compare, Delete, Store

LOOKERS: Final = 16
"""So many hosts look at each beat, about; and of so many the least busy restarts pods."""

_COUNTED: Final = 30  # beats from one time to the next


class Lookout:
    """Looks, for one agent."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        """Begin.

        Args:
            chance: draws the lot: less than the share of those that look, and one does.
        """
        self._chance = chance
        self._hosts, self._beats = 0, 0
        self._away: set[str] = set()

    async def look(self, store: Store) -> Survey:
        """Return what is known of hosts that are away, and have armed pods.

        The members are told where they are few.

        Raises:
            FleetError: it cannot be told.
        """
        if self._beats % _COUNTED == 0:
            self._hosts = await store.count(members.PREFIX)
        self._beats += 1
        if self._chance() * self._hosts < LOOKERS:
            here = await _names(store, members.PREFIX)
            self._away |= await _names(store, recovery.GUARDED) - here
            self._hosts = len(here)
        found = [one for host in sorted(self._away) for one in await self._of(store, host)]
        if not found:
            return Survey([], [], set())
        few = self._hosts <= LOOKERS
        there = await members.read(store) if few else []
        return Survey(found, there, await recovery.with_slots(store))

    async def _of(self, store: Store, host: str) -> list[Charge]:
        """Return the armed pods of a host that is away, if it still is."""
        guarded = await store.get(recovery.guarded(host))
        if guarded is None or await store.get(members.key(host)):
            self._away.discard(host)
            return []
        found = await recovery.of_host(store, host)
        if not found and not await recovery.armed_pods(store, host):
            # One that arms a pod meanwhile writes it anew.
            changes = [Delete(guarded.key)]
            await store.apply([Compare(guarded.key, guarded.revision)], changes)
            self._away.discard(host)
        return found


async def _names(store: Store, prefix: str) -> set[str]:
    return {key.removeprefix(prefix) for key in await store.keys(prefix)}
