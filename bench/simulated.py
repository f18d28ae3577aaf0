"""A fleet of simulated hosts in a real store: what is written is written by the project's own code.

No host is there, and no pod runs: there are the entries that hosts would have written, under real
leases. Who owns which pod is written by the project's `owners.put()`, many in a transaction.
"""

import hashlib
import platform
import random

import msgspec
import trio

from autopod import hosts
from autopod.fleet import client, members, owners, recovery
from autopod.fleet.members import Member
from autopod.fleet.store import MAX_CHANGES, Put
from autopod.fleet.store import Store as FleetStore
from autopod.status.policy import Fleet
from ckpt.archive import host as machine
from launcher.places import Places

PODS = 10  # of a host
DRAINED, DRAINED_PODS = 0, 100  # number and pods of the host that is drained
LEASE_S = 7200  # renewed by nobody but who measures that
GIB = 1 << 30
_AT_ONCE = 16
_LAYERS = 4


def name(number: int) -> str:
    return f"host{number:05}"


def pods_of(number: int) -> list[str]:
    count = DRAINED_PODS if number == DRAINED else PODS
    return [f"pod{number:05}-{at}" for at in range(count)]


def layers_of(number: int) -> list[str]:
    """Ids of layers that are kept there, of which some hosts have the same."""
    return sorted(hashlib.md5(b"%d" % (number % 500 + at)).hexdigest() for at in range(_LAYERS))


def describe(number: int, here: machine.Host, fingerprint: str) -> Member:
    """What a host would say of itself, with the features of this machine's processor."""
    chance = random.Random(number)
    return Member(
        name=name(number),
        address=f"{name(number)}.example.net:7463",
        fingerprint=fingerprint,
        group=f"rack{number // 20}",
        slots=1,
        kernel=platform.release(),
        machine=here.architecture,
        cpu_features=here.cpu_features,
        memory_free=chance.randrange(4, 64) * GIB,
        pods=pods_of(number),
        layers=layers_of(number),
    )


def acquaint(places: Places, count: int) -> str:
    """Let this host know so many; return the fingerprint that all have, of one certificate."""
    hosts.init(places, name(DRAINED), "192.0.2.1")
    certificate = hosts.own_certificate(places).read_text()
    host = hosts.Host("192.0.2.2:7463", certificate)
    hosts.save(places, "first", host)
    [file] = places.prefix.glob("etc/autopod/hosts/first.toml")
    text = file.read_bytes()
    file.unlink()
    for number in range(count):
        file.with_name(f"{name(number)}.toml").write_bytes(text)
    return host.fingerprint


async def build(fleet: Fleet, count: int, fingerprint: str) -> list[int]:
    """Fill an empty store; return the leases of the hosts."""
    here, leases = machine.describe(), [0] * count
    todo = iter(range(count))

    async def join() -> None:
        async with client.opened(fleet) as store:
            for number in todo:
                leases[number] = (await store.grant(LEASE_S)).id
                member = describe(number, here, fingerprint)
                await members.announce(store, member, leases[number])

    async with trio.open_nursery() as nursery:
        for _ in range(1 if fleet.file else min(_AT_ONCE, count)):
            nursery.start_soon(join)
    everybody = [change for n in range(count) for pod in pods_of(n) for change in owned(pod, n)]
    everybody += [Put(recovery.guarded(name(number)), b"") for number in range(count)]
    pieces = iter(range(0, len(everybody), MAX_CHANGES))

    async def own() -> None:
        async with client.opened(fleet) as store:
            for at in pieces:
                await store.apply([], everybody[at : at + MAX_CHANGES])

    async with trio.open_nursery() as nursery:
        for _ in range(1 if fleet.file else min(_AT_ONCE, count)):
            nursery.start_soon(own)
    return leases


def owned(pod: str, number: int) -> list[Put]:
    """A pod that a host has, and that others restart when it dies."""
    armed = recovery.Armed(name(number), 60)
    return [
        owners.put(pod, name(number)),
        Put(owners.armed(name(number), pod), msgspec.json.encode(armed)),
    ]


async def put_back(store: FleetStore) -> None:
    """Let the host that is drained have its pods again."""
    changes = [change for pod in pods_of(DRAINED) for change in owned(pod, DRAINED)]
    for at in range(0, len(changes), MAX_CHANGES):
        await store.apply([], changes[at : at + MAX_CHANGES])
