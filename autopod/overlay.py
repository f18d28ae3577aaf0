"""The overlay of the hosts that know each other, and pods that are reached through this one.

Who is a member is said by what the hosts know of each other (autopod/hosts.py), how this host takes
part by `[overlay]` of its network.toml; what comes of it is written down for the launcher, which
makes it (launcher/overlay.py), after a reboot, too.
"""

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from autopod import hosts
from autopod.errors import Refused
from launcher import addresses, netconfig, network, overlay, whohas
from launcher.config import PodConfig
from launcher.identity import Identity
from launcher.overlay import ETHERNET, OVERHEAD, Member, Overlay
from launcher.places import Places

_PATIENCE_S: Final = 1.0


class Row(Struct, frozen=True):
    """A member, as `autopod overlay list` shows it.

    Attributes:
        host: its name.
        address: IP address between members; None: it cannot be found.
        mac: of its bridge.
        own: it is this host.
        problem: why it is left out; None if it is not.
    """

    host: str
    address: str | None
    mac: str
    own: bool
    problem: str | None


class RelayRow(Struct, frozen=True):
    """A pod that has moved and is reached through this host.

    Attributes:
        pod: its name.
        host: where it went from here.
        addresses: its own, without prefix length.
        ports: of this host that lead to it.
    """

    pod: str
    host: str
    addresses: list[str]
    ports: list[str]


def is_wanted(places: Places) -> bool:
    """Is there anything for sync() to do?

    Raises:
        ConfigError: network.toml cannot be understood.
    """
    return places.overlay().exists() or netconfig.pools(places).overlay is not None


def sync(places: Places) -> list[str]:
    """Make the overlay what network.toml and the known hosts say.

    Returns:
        Why hosts are left out that this one knows.

    Raises:
        Refused, PodError: it cannot be; what there was is kept.
        ConfigError: network.toml cannot be understood.
    """
    wanted, problems = _wanted(places)
    with addresses.locked(places):
        before = overlay.read(places)
        overlay.write(places, wanted)
    try:
        network.settle_overlay(places)
    except BaseException:
        overlay.write(places, before)
        raise
    return [f"host {name}: {problem}" for name, problem in problems.items()]


def follow(places: Places) -> list[str]:
    """Do what sync() does, if there is an overlay: the hosts that this one knows have changed."""
    return sync(places) if is_wanted(places) else []


def rows(places: Places) -> list[Row]:
    """Return the members: this host first.

    Raises:
        Refused: there is no overlay here.
    """
    made = overlay.read(places)
    if made is None:
        hint = f"write [overlay] into {places.network_config()}; then autopod overlay sync"
        raise Refused("this host is in no overlay", hint)
    found = {one.name: one.address for one in made.members}
    members = [
        _row(name, host.fingerprint, found.get(name)) for name, host in hosts.known(places).items()
    ]
    return [Row(made.own.name, made.own.address, made.own.mac, own=True, problem=None), *members]


def relays(places: Places) -> list[RelayRow]:
    """Return the pods that have moved and are reached through this host."""
    return [
        RelayRow(
            pod=name,
            host=relay.host,
            addresses=[address.partition("/")[0] for address, _ in relay.identity.pairs],
            ports=[port.shown for port in relay.identity.ports],
        )
        for name, relay in sorted(addresses.read(places).relayed.items())
    ]


def carries(places: Places, settings: PodConfig) -> bool:
    """Do connections of a pod of this host go on over the overlay, wherever it moves?"""
    on_bridge, keeps = settings.network.mode == "bridge", settings.network.tcp == "keep"
    return on_bridge and keeps and overlay.read(places) is not None


def check(places: Places) -> None:
    """Refuse a pod that is on an overlay, if this host is on none.

    Raises:
        Refused: it is not.
    """
    if overlay.read(places) is None:
        hint = "[overlay] in network.toml there; then autopod overlay sync"
        raise Refused("the pod's host is on an overlay, and this one is not", hint)


def look(places: Places, name: str, own: Identity, *, keeps: bool) -> None:
    """Refuse pod *name*, which runs at another host, if it could not be reached here.

    Args:
        places: the instance.
        name: of the pod.
        own: its identity.
        keeps: do its connections go on?

    Raises:
        Refused: it could not.
    """
    made = overlay.read(places)
    if made is None or own.bridge is None:
        return
    for address, _ in own.pairs:
        _check_pool(address, made)
    wanted = [address.partition("/")[0] for address, _ in own.pairs]
    try:
        found = whohas.ask(overlay.device_name(places), made.own.mac, wanted, _PATIENCE_S)
    except OSError as e:
        hint = "autopod overlay sync, there"
        raise Refused(f"the overlay is not there: {e.strerror}", hint) from e
    for address, mac in found.items():
        if mac != own.mac:
            hint = "one of the two needs another address: network.address"
            raise Refused(f"address {address} of pod {name!r} is another machine's, too", hint)
    lacking = [address for address in wanted if address not in found]
    if lacking and keeps:
        hint = (
            f"UDP port {made.port} must pass, both ways; port and vni, in network.toml, are the "
            "same on all hosts"
        )
        raise Refused(f"pod {name!r} does not answer over the overlay at {lacking[0]}", hint)


def _check_pool(address: str, made: Overlay) -> None:
    """Refuse a network that is not this host's, but overlaps it."""
    own = ipaddress.ip_interface(address).network
    for gateway in made.gateways:
        pool = ipaddress.ip_interface(gateway).network
        if own.version == pool.version and own != pool and own.overlaps(pool):
            hint = "network.toml, pool: hosts of one overlay have the same"
            raise Refused(f"the pod's network {own} overlaps this host's pool {pool}", hint)


def _wanted(places: Places) -> tuple[Overlay | None, dict[str, str]]:
    """Return what the overlay is to be, and why hosts are left out of it."""
    pools = netconfig.pools(places)
    tunnel = pools.overlay
    if tunnel is None:
        return None, {}
    own = hosts.load_own(places)
    try:
        address = tunnel.address or _resolve(own.address, None)
    except OSError as e:
        hint = "network.toml, [overlay] address"
        raise Refused(f"overlay: {own.address} of this host: {e.strerror}", hint) from e
    if ipaddress.ip_address(address).is_loopback:
        hint = f"{places.network_config()}, [overlay] address: the one by which they do"
        raise Refused(f"overlay: no other host reaches this one by {address}", hint)
    version = ipaddress.ip_address(address).version
    members, problems = [], {}
    for name, host in hosts.known(places).items():
        try:
            found = _resolve(host.address, version)
        except OSError as e:
            problems[name] = f"{host.address}: {e.strerror}"
        else:
            members.append(Member(name, found, overlay.mark_of(host.fingerprint)))
    mark = overlay.mark_of(hosts.own_fingerprint(places))
    made = Overlay(
        own=Member(own.name, address, mark),
        members=tuple(members),
        vni=tunnel.vni,
        port=tunnel.port,
        mtu=tunnel.mtu or ETHERNET - OVERHEAD[version],
        gateways=_gateways(pools),
    )
    return made, problems


def _gateways(pools: netconfig.Pools) -> tuple[str, ...]:
    networks = [ipaddress.ip_network(pools.pool or netconfig.POOL)]
    networks += [ipaddress.ip_network(pools.pool6)] if pools.pool6 else []
    return tuple(f"{one[1]}/{one.prefixlen}" for one in networks)


def _resolve(address: str, version: int | None) -> str:
    """Return the IP address of a host's service, of IP *version*.

    Raises:
        OSError: it has none.
    """
    families = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
    name, port = hosts.split(address)
    found = socket.getaddrinfo(name, port, families[version], socket.SOCK_DGRAM)
    return str(found[0][4][0])


def _row(name: str, fingerprint: str, address: str | None) -> Row:
    mac = Member(name, address or "", overlay.mark_of(fingerprint)).mac
    problem = None if address else "it is left out: autopod overlay sync says why"
    return Row(name, address, mac, own=False, problem=problem)


def table(members: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return members as cells for a person. Pure."""
    head = ("HOST", "ADDRESS", "MAC", "PROBLEM")
    return [head, *((r.host, r.address or "-", r.mac, r.problem or "-") for r in members)]
