"""Pods of a host that has died are restarted elsewhere, from a checkpoint that is used up by it.

`/armed/HOST/POD` says that HOST, which owns the pod, ends it by itself before its lease has ended
(autopod/fleet/fence.py); it goes with every change of hands. `/guarded/HOST` says that HOST may
have such pods. Who claims a pod becomes its owner and arms it in one transaction, on the condition
that the former host is no member; so it is done by one.

`/pods/POD/consumed/NAME` says that a checkpoint was used. It is written when the pod stands, before
a process of it is let go, on the condition that its host still has it: a host that dies before that
has used nothing up, and the next one takes the same checkpoint.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from autopod.errors import Refused
from autopod.fleet import history, members, owners, slots
from autopod.fleet.members import Member
from autopod.fleet.owners import ARMED, Owner
from autopod.fleet.store import (
    Change,
    Compare,
    Delete,
    Entry,
    FleetError,
    Put,
    Store,
    decode,
)
from launcher.places import is_pod_name

GUARDED: Final = "/guarded/"
_TRIES: Final = 20
_MARGIN: Final = 0.5  # of the lease's time, after it has ended


class Armed(Struct, frozen=True):
    """Of `/armed/HOST/POD`.

    Attributes:
        host: that ends the pod.
        ttl_s: how long its leases last.
        restart: the checkpoint from which it is to restart the pod; None: the pod ran when it was
            armed. Once that is consumed, the pod has lived.
    """

    host: str
    ttl_s: float
    restart: str | None = None


class Charge(Struct, frozen=True):
    """A pod that somebody may have to restart.

    Attributes:
        pod: its name.
        owner: who has it, in the transaction *revision*.
        armed: that it may be claimed, written in the transaction *armed_revision*.
        consumed: names of checkpoints that were used.
    """

    pod: str
    owner: Owner
    revision: int
    armed: Armed
    armed_revision: int
    consumed: frozenset[str]

    @property
    def unborn(self) -> bool:
        """Was it claimed, and has not lived since?"""
        return self.armed.restart is not None and self.armed.restart not in self.consumed


class Survey(Struct, frozen=True):
    """What is there at one moment, about.

    Attributes:
        charges: pods that are armed.
        members: hosts that are there.
        busy: hosts that have a reboot slot.
    """

    charges: list[Charge]
    members: list[Member]
    busy: Collection[str]


async def survey(store: Store) -> Survey:
    """Look at everything; what an agent looks at is in autopod/fleet/lookout.py.

    Raises:
        FleetError: it cannot be told.
    """
    busy, there = await with_slots(store), await members.read(store)
    entries = [*(await store.scan(owners.PREFIX)).entries, *(await store.scan(ARMED)).entries]
    return Survey(charges(entries), there, busy)


async def with_slots(store: Store) -> set[str]:
    """Return who has a reboot slot.

    Raises:
        FleetError: it cannot be told.
    """
    held = await slots.holders_of_all(store)
    return {holder.id for holders in held.values() for holder in holders}


async def of_host(store: Store, host: str) -> list[Charge]:
    """Return the pods of a host that are armed.

    Raises:
        FleetError: it cannot be told.
    """
    armed = (await store.scan(owners.armed(host, ""))).entries
    return charges([one for entry in armed for one in [entry, *await _of_pod(store, entry)]])


async def charge(store: Store, host: str, pod: str) -> Charge | None:
    """Return a pod of a host, if it is armed.

    Raises:
        FleetError: it cannot be told.
    """
    armed = await store.get(owners.armed(host, pod))
    found = charges([armed, *await _of_pod(store, armed)]) if armed else []
    return found[0] if found else None


async def armed_pods(store: Store, host: str) -> set[str]:
    """Return the names of a host's armed pods.

    Raises:
        FleetError: it cannot be told.
    """
    return {key.rpartition("/")[2] for key in await store.keys(owners.armed(host, ""))}


def charges(entries: Sequence[Entry]) -> list[Charge]:
    """Return the pods that are armed, of entries of pods, and of those that say so. Pure."""
    pods: dict[str, dict[str, Entry]] = {}
    armed: list[tuple[str, str, Entry]] = []
    for entry in entries:
        if entry.key.startswith(ARMED):
            armed.append((entry.key.rpartition("/")[2], entry.key, entry))
        else:
            pod, _, what = entry.key.removeprefix(owners.PREFIX).partition("/")
            pods.setdefault(pod, {})[what] = entry
    armed.sort(key=lambda one: one[:2])
    found = [_charge(pod, entry, pods.get(pod, {})) for pod, _, entry in armed]
    return [one for one in found if one]


def _charge(pod: str, armed: Entry, entries: Mapping[str, Entry]) -> Charge | None:
    """Return what is known of a pod; None if that cannot be understood: it is nobody's then."""
    owner, used = entries.get("owner"), "consumed/"
    if owner is None or not is_pod_name(pod):
        return None
    consumed = frozenset(what.removeprefix(used) for what in entries if what.startswith(used))
    try:
        whose, how = decode(owner, Owner), decode(armed, Armed)
    except FleetError:
        return None
    if armed.key != owners.armed(whose.host, pod):
        return None
    return Charge(pod, whose, owner.revision, how, armed.revision, consumed)


async def _of_pod(store: Store, armed: Entry) -> list[Entry]:
    pod = armed.key.rpartition("/")[2]
    return (await store.scan(f"{owners.PREFIX}{pod}/")).entries if is_pod_name(pod) else []


class Patience:
    """Tells when a host has been away for long enough. Pure but for what it remembers."""

    def __init__(self, host: str) -> None:
        """Be that of *host*."""
        self._host = host
        self._since: dict[tuple[str, int, int], float] = {}

    def due(self, found: Survey, now: float) -> list[Charge]:
        """Return the pods of others that this host is to claim at *now*."""
        here = {member.name for member in found.members}
        away = {
            (one.pod, one.revision, one.armed_revision): one
            for one in found.charges
            if one.owner.host not in here | {self._host}
            and one.owner.host not in found.busy
            and one.owner.host == one.armed.host
        }
        self._since = {key: self._since.get(key, now) for key in away}
        rank = _rank(found.members, self._host)
        return [
            one
            for key, one in away.items()
            if now - self._since[key] >= one.armed.ttl_s * _MARGIN * (1 + rank)
        ]


def _rank(there: Collection[Member], host: str) -> int:
    """Return how many hosts are to try before this one: those that have fewer pods."""
    order = sorted(there, key=lambda one: (len(one.pods), one.name))
    names = [one.name for one in order]
    return names.index(host) if host in names else len(names)


async def arm(store: Store, pod: str, host: str, ttl_s: float) -> bool:
    """Let others claim a pod of this host's when its lease has ended; only its owner can.

    Raises:
        FleetError: it may be so, or not.
    """
    owner, revision = await owners.read(store, pod)
    if owner is None or owner.host != host:
        return False
    key = owners.armed(host, pod)
    compares = [Compare(owners.key(pod), revision), Compare(key, 0)]
    put = Put(key, msgspec.json.encode(Armed(host, ttl_s)))
    return await store.apply(compares, [put, Put(guarded(host), b"")]) is not None


async def disarm(store: Store, pod: str, host: str) -> None:
    """Let nobody claim a pod of this host's any more; it may be another's already.

    The owner is written anew, so that an arm() which is still on its way comes to nothing.

    Raises:
        FleetError: somebody may still claim it.
    """
    for _ in range(_TRIES):
        owner, revision = await owners.read(store, pod)
        if owner is None or owner.host != host:
            return
        same = Put(owners.key(pod), msgspec.json.encode(owner))
        changes: list[Change] = [same, Delete(owners.armed(host, pod))]
        if await store.apply([Compare(owners.key(pod), revision)], changes):
            return
    raise FleetError(f"pod {pod!r}: others change its owner all the time")


async def claim(store: Store, charge: Charge, host: str, checkpoint: str, ttl_s: float) -> bool:
    """Claim a pod, to restart it from a checkpoint that was not used; tell whether it was done.

    The host must end it with its lease from now on.

    Raises:
        FleetError: it may have been done, or not.
    """
    former, own = owners.armed(charge.owner.host, charge.pod), owners.armed(host, charge.pod)
    compares = [
        Compare(owners.key(charge.pod), charge.revision),
        Compare(former, charge.armed_revision),
        Compare(_consumed(charge.pod, checkpoint), 0),
    ]
    text = f"{charge.pod} of {charge.owner.host}: {host} restarts it from {checkpoint}"
    changes: list[Change] = [
        Put(own, msgspec.json.encode(Armed(host, ttl_s, checkpoint))),
        Put(guarded(host), b""),
        history.told(host, "recovery", text),
    ]
    if charge.owner.host != host:
        compares.append(Compare(members.key(charge.owner.host), 0))
        changes += [owners.put(charge.pod, host), Delete(former)]
    return await store.apply(compares, changes) is not None


async def consume(store: Store, pod: str, host: str, checkpoint: str) -> None:
    """Use up a checkpoint, before the pod that was made of it is let go at a host.

    Raises:
        Refused: the host has the pod no longer, or it was used already.
        FleetError: it was used up, or not.
    """
    used = _consumed(pod, checkpoint)
    for _ in range(_TRIES):
        owner, revision = await owners.read(store, pod)
        if owner is None or owner.host != host:
            raise Refused(f"pod {pod!r}: {owner.host if owner else 'nobody'} has it now")
        if await store.get(used):
            raise Refused(f"pod {pod!r}: checkpoint {checkpoint} was used already")
        compares = [Compare(owners.key(pod), revision), Compare(used, 0)]
        if await store.apply(compares, [Put(used, host.encode())]):
            return
    raise FleetError(f"pod {pod!r}: others change its owner all the time")


def newest(names: Mapping[int, str], consumed: Collection[str]) -> str | None:
    """Return the newest checkpoint, by number, if it was not used; else None. Pure.

    One that is older than one that was used would take back what was done since.
    """
    latest = max(names, default=None)
    if latest is None or names[latest] in consumed:
        return None
    return names[latest]


def _consumed(pod: str, checkpoint: str) -> str:
    return f"{owners.PREFIX}{pod}/consumed/{checkpoint}"


def guarded(host: str) -> str:
    """Return under which name it stands that a host may have armed pods."""
    return GUARDED + host
