"""Who belongs to a fleet: each host writes under a lease what it offers, and has gone with it."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from autopod import hosts
from autopod.fleet import history
from autopod.fleet.store import Compare, FleetError, Put, Store, decode
from autopod.status.policy import Fleet
from ckpt.archive import host as machine
from launcher import enter, pods
from launcher.places import Places

PREFIX: Final = "/members/"
_LAYERS: Final = 1000
_LOOKED: Final = 30  # beats from one look at the own entry to the next
_ROUNDED: Final = 64 << 20  # free memory changes all the time


class Member(Struct, frozen=True):
    """A host, as it describes itself.

    Attributes:
        name: of the host.
        address: where its service answers.
        fingerprint: of its certificate: which of two hosts of that name.
        group: of which only some reboot at a time.
        slots: how many, as it is configured there.
        kernel: its release.
        machine: the architecture.
        cpu_features: what programs may use.
        memory_free: bytes, about.
        pods: in which programs run.
        layers: ids of sealed layers that are kept there of pods that are not.
    """

    name: str
    address: str
    fingerprint: str
    group: str
    slots: int
    kernel: str
    machine: str
    cpu_features: list[str]
    memory_free: int
    pods: list[str]
    layers: list[str] = []


def describe(places: Places, fleet: Fleet) -> Member:
    """Return this host.

    Raises:
        Refused: it has no name.
    """
    own, here = hosts.load_own(places), machine.describe()
    certificate = hosts.own_certificate(places).read_text(encoding="ascii")
    return Member(
        name=own.name,
        address=own.address,
        fingerprint=hosts.Host(own.address, certificate).fingerprint,
        group=fleet.group,
        slots=fleet.slots,
        kernel=here.kernel,
        machine=here.architecture,
        cpu_features=here.cpu_features,
        memory_free=free_memory(Path("/proc/meminfo").read_text(encoding="ascii")),
        pods=[name for name in pods.names(places) if _runs(places, name)],
        layers=_layers(places),
    )


def free_memory(meminfo: str) -> int:
    """Return the bytes that programs could have, of the text of /proc/meminfo, rounded. Pure."""
    found = re.search(r"^MemAvailable:\s+([0-9]+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 // _ROUNDED * _ROUNDED if found else 0


async def announce(store: Store, member: Member, lease: int) -> None:
    """Let the fleet know a host, for as long as the lease lasts; anew if it has changed.

    Raises:
        FleetError: another host has its name, or it is not known to be written.
    """
    name, value = key(member.name), msgspec.json.encode(member)
    entry = await store.get(name)
    changes = [Put(name, value, lease)]
    if entry is None:
        text = f"{member.name} joins at {member.address}, kernel {member.kernel}"
        changes.append(history.told(member.name, "joined", text))
    elif decode(entry, Member).fingerprint != member.fingerprint:
        hint = f"the other one is at {decode(entry, Member).address}; see autopod host init --name"
        raise FleetError(f"another host of the fleet has the name {member.name!r}", hint)
    elif entry.lease == lease and entry.value == value:
        return
    if not await store.apply([Compare(name, entry.revision if entry else 0)], changes):
        raise FleetError(f"somebody else writes {name}", "does the service run twice?")


class Announced:
    """What a host has said of itself, so that it says it again only if that has changed."""

    def __init__(self) -> None:
        self._said: Member | None = None
        self._beats = 0

    async def announce(self, store: Store, member: Member, lease: int) -> None:
        """Announce a host at a beat, if need be; now and then in any case.

        Raises:
            FleetError: as announce() does.
        """
        wanted = steady(member, self._said)
        self._beats += 1
        if wanted != self._said or self._beats % _LOOKED == 0:
            self._said = None
            await announce(store, wanted, lease)
            self._said = wanted


def steady(member: Member, said: Member | None) -> Member:
    """Return what a host is to say, which has said something before. Pure.

    Free memory changes all the time, and by an eighth it must before it is worth telling.
    """
    if said is not None and abs(member.memory_free - said.memory_free) <= said.memory_free / 8:
        return replace(member, memory_free=said.memory_free)
    return member


async def read(store: Store) -> list[Member]:
    """Return the hosts that are there, by name.

    Raises:
        FleetError: it cannot be told.
    """
    return [decode(entry, Member) for entry in (await store.scan(PREFIX)).entries]


def key(name: str) -> str:
    """Return under which name a host's entry stands."""
    return PREFIX + name


def _layers(places: Places) -> list[str]:
    """Return what is kept of pods that have left, the newest _LAYERS."""
    kept = []
    for path in places.states().glob(".*.layers/*"):
        with suppress(FileNotFoundError):  # its pod comes just now
            kept.append((path.stat().st_ctime_ns, path.name))
    newest = sorted(kept, reverse=True)[:_LAYERS]
    return sorted(name for _, name in newest if not name.startswith("."))


def _runs(places: Places, name: str) -> bool:
    found = pods.find(places, name)
    return found is not None and bool(enter.pids(found))
