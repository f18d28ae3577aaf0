"""`autopod fleet`: all that a fleet keeps, as data and in words."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from autopod import hosts, migrate, overview
from autopod.errors import Refused
from autopod.fleet import history, members, owners, place, recovery, slots
from autopod.fleet.history import Happened
from autopod.fleet.members import Member
from autopod.fleet.owners import Owner
from autopod.fleet.place import Choice, Need
from autopod.fleet.slots import Holder
from autopod.fleet.store import Store
from ckpt import stack
from ckpt.archive import host as machine
from ckpt.stackcommand import StackError
from launcher import enter, pods
from launcher.places import Places

_SHOWN = 20


class Fleet(Struct, frozen=True):
    """What is known of a fleet.

    Attributes:
        members: that are there.
        slots: who has one, by group.
        pods: who has which.
        armed: those that others restart when their host dies.
        events: what has happened, the oldest first.
    """

    members: list[Member]
    slots: dict[str, list[Holder]]
    pods: dict[str, Owner]
    armed: list[str]
    events: list[Happened]


class Placed(Struct, frozen=True):
    """What was found of a host for a pod; see place.Choice."""

    pod: str
    host: str
    score: float
    reasons: list[str]
    possible: bool


async def gather(store: Store) -> Fleet:
    """Ask for it.

    Raises:
        FleetError: it cannot be told.
    """
    return Fleet(
        await members.read(store),
        await slots.holders_of_all(store),
        await owners.of_all(store),
        sorted(key.rpartition("/")[2] for key in await store.keys(owners.ARMED)),
        await history.read(store),
    )


def need(places: Places, pod: str) -> Need:
    """Return what a pod of this host needs.

    Raises:
        PodError: it does not run.
        StackError: its file system does not answer.
    """
    running = pods.find(places, pod)
    if running is None or not enter.pids(running):
        raise pods.PodError(f"pod {pod!r} is not running", f"see autopod addproc {pod} PROGRAM")
    here, layers = machine.describe(), stack.status(places, pod).layers
    return Need(
        pod,
        here.architecture,
        here.cpu_features,
        migrate.memory(running),
        [layer.id for layer in layers],
    )


def needs(places: Places, names: Iterable[str]) -> list[Need]:
    """Return what pods of this host need, but for those that cannot be asked any more."""
    found = []
    for name in names:
        with suppress(pods.PodError, StackError):
            found.append(need(places, name))
    return found


def known(places: Places) -> dict[str, str]:
    """Return the fingerprints of the hosts that this one knows.

    Raises:
        Refused: a file cannot be understood.
    """
    return {name: host.fingerprint for name, host in hosts.known(places).items()}


async def choices(
    store: Store, wanted: Need, friends: Mapping[str, str], coming: Sequence[str]
) -> list[Choice]:
    """Return what place.place() says of the members as they are now.

    Raises:
        FleetError: it cannot be told.
    """
    there, busy = await _hosts(store)
    return place.place(wanted, there, known=friends, busy=busy, coming=coming)


async def plan(
    store: Store, wanted: Sequence[Need], friends: Mapping[str, str], coming: Sequence[str]
) -> dict[str, list[Choice]]:
    """Return what place.plan() says of the members as they are now.

    Raises:
        FleetError: it cannot be told.
    """
    there, busy = await _hosts(store)
    return place.plan(wanted, there, known=friends, busy=busy, coming=coming)


async def _hosts(store: Store) -> tuple[list[Member], set[str]]:
    """Return the members, and who has a slot."""
    busy = await recovery.with_slots(store)
    return await members.read(store), busy


def placed(found: Mapping[str, Sequence[Choice]]) -> list[Placed]:
    """Return it in rows, for a program."""
    return [
        Placed(pod, one.host, one.score, one.reasons, one.possible)
        for pod, choices in found.items()
        for one in choices
    ]


def table(found: Sequence[Choice]) -> list[tuple[str, ...]]:
    """Return it in rows, for people."""
    rows = [
        (one.host, f"{one.score:.3f}" if one.possible else "-", "; ".join(one.reasons))
        for one in found
    ]
    return [("HOST", "SCORE", "WHY"), *rows]


def plan_table(found: Mapping[str, Sequence[Choice]]) -> list[tuple[str, ...]]:
    """Return the best host of each pod in rows, for people."""
    rows = [
        (pod, best[0].host, f"{best[0].score:.3f}", "; ".join(best[0].reasons))
        if best
        else (pod, "-", "-", "no host can have it")
        for pod, best in found.items()
    ]
    return [("POD", "HOST", "SCORE", "WHY"), *rows]


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
    owned = [
        f"pod {pod}: {owner.host} has it, since {owner.since:%F %R} UTC\n"
        for pod, owner in fleet.pods.items()
    ]
    events = [f"{one.at:%F %T} {one.kind}: {one.text}\n" for one in fleet.events[-_SHOWN:]]
    return "".join([overview.columns(rows), *lines, *owned, *events])
