"""A pod's identity in the network. Pure: configuration in, names and addresses out."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from launcher.config import PodConfig
from launcher.errors import PodError
from launcher.netconfig import POOL, Network, Pools, Port, clash
from launcher.places import Places

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

_HOST: Final = 1
"""Which address of a network is the host's, where nothing else is said."""


class Identity(msgspec.Struct, frozen=True):
    """What the pod's network is made of. The pod's interface is `eth0`.

    Attributes:
        bridge: name of the host's bridge, one for all pods of an instance; None with macvlan.
        parent: name of the host's interface, with macvlan.
        port: name of the host's end of the pod's veth pair, with a bridge.
        mac: of the pod's end.
        address: IPv4, with prefix length.
        gateway: of it, with prefix length; with a bridge the host's address there.
        address6: IPv6, likewise.
        gateway6: of it, likewise.
        nat: do its connections to beyond the host get the host's address?
        ports: ports of the host that lead to its own.
    """

    bridge: str | None
    parent: str | None
    port: str
    mac: str
    address: str | None
    gateway: str | None
    address6: str | None
    gateway6: str | None
    nat: bool
    ports: tuple[Port, ...]

    @property
    def pairs(self) -> list[tuple[str, str | None]]:
        """Its addresses, each with its gateway."""
        both = ((self.address, self.gateway), (self.address6, self.gateway6))
        return [(address, gateway) for address, gateway in both if address is not None]


def bridge_name(places: Places) -> str:
    """Return the name of the instance's bridge."""
    return f"ap{places.tag}br" if places.tag else "autopod0"


def port_name(places: Places, name: str) -> str:
    """Return the name of the host's end of pod *name*'s veth pair."""
    return f"ap{places.tag}v{_digest(places, name)[:4].hex()}"


def identity(
    places: Places,
    config: PodConfig,
    pools: Pools,
    kept: Identity | None,
    others: Mapping[str, Identity],
    salt: str = "",
) -> Identity | None:
    """Return the identity of the pod, or None if it has no network.

    What the configuration leaves open is as it was before; at first it follows from the pod's
    name, and if another pod has that address, it is the next free one.

    Args:
        places: the instance.
        config: of the pod.
        pools: of the host.
        kept: its identity before.
        others: identities of the other pods.
        salt: has pods of one name on several hosts have different identities.

    Raises:
        PodError: it contradicts the pools or another pod's, or a pool is used up.
    """
    network = config.network
    if network.mode == "none":
        return None
    digest = _digest(places, config.name + salt)
    bridged = network.mode == "bridge"
    before = kept if kept and (kept.bridge is not None) == bridged else None
    address = _plain(network.address) or (before.address if before else None)
    address6 = _plain(network.address6) or (before.address6 if before else None)
    if bridged:
        taken = [ip for other in others.values() for ip in _ips(other)]
        address = address or _pooled(pools.pool or POOL, digest, taken)
        address6 = address6 or _pooled(pools.pool6, digest, taken)
        _check_pool("address", network.address, pools.pool)
        _check_pool("address6", network.address6, pools.pool6)
    found = Identity(
        bridge=bridge_name(places) if bridged else None,
        parent=network.parent,
        port=port_name(places, config.name),
        mac=network.mac or (kept.mac if kept else None) or _mac(digest),
        address=address,
        gateway=_gateway(address, network.gateway, first=bridged),
        address6=address6,
        gateway6=_gateway(address6, network.gateway6, first=bridged),
        nat=network.nat,
        ports=network.ports,
    )
    _refuse_taken(found, others)
    return found


def pinned(network: Network, found: Identity | None) -> Network:
    """Return *network* with nothing left open: what takes the pod's identity to another host."""
    if found is None:
        return network
    return msgspec.structs.replace(
        network,
        mac=found.mac,
        address=found.address,
        address6=found.address6,
        gateway=_ip(found.gateway) if found.address else None,
        gateway6=_ip(found.gateway6) if found.address6 else None,
    )


def adopted(network: Network, archived: Network) -> Network:
    """Return *network* with what it leaves open taken from *archived*, if both have the mode."""
    if network.mode != archived.mode:
        return network
    return msgspec.structs.replace(
        network,
        mac=network.mac or archived.mac,
        **_either(network, archived, "address", "gateway"),
        **_either(network, archived, "address6", "gateway6"),
    )


def _either(network: Network, archived: Network, address: str, gateway: str) -> dict[str, object]:
    """Return address and gateway of *network* if it has the address, else those of *archived*."""
    source = network if getattr(network, address) else archived
    return {address: getattr(source, address), gateway: getattr(source, gateway)}


def next_free(wish: str, taken: Iterable[str]) -> str:
    """Return *wish* or, where somebody has it, the next free address of its network.

    Args:
        wish: address with prefix length.
        taken: addresses without.

    Raises:
        PodError: there is none.
    """
    import ipaddress

    wanted = ipaddress.ip_interface(wish)
    used = {int(ip) for ip in map(ipaddress.ip_address, taken) if ip.version == wanted.version}
    first, count = _usable(wanted.network)
    for step in range(min(count, len(used) + 1)):
        number = first + (int(wanted.ip) - first + step) % count
        if number not in used:
            return str(type(wanted)((number, wanted.network.prefixlen)))
    raise PodError(f"no address of {wanted.network} is free", "give the pod one: network.address")


def _digest(places: Places, name: str) -> bytes:
    import hashlib

    return hashlib.sha256(f"{places.tag}/{name}".encode()).digest()


def _mac(digest: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x50, *digest[4:8]))


def _usable(network: "IPv4Network | IPv6Network") -> tuple[int, int]:
    """Return the first address of *network* that a pod may have, and how many there are.

    The first two are the network's own and the host's, the last one is for broadcasts.
    """
    return int(network.network_address) + 2, network.num_addresses - 3


def _plain(address: str | None) -> str | None:
    """Return *address* as it is always written: IPv6 knows many ways."""
    import ipaddress

    return None if address is None else str(ipaddress.ip_interface(address))


def _pooled(pool: str | None, digest: bytes, taken: Iterable[str]) -> str | None:
    """Return a free address of *pool*: the one that follows from *digest*, or one after it."""
    if pool is None:
        return None
    import ipaddress

    network = ipaddress.ip_network(pool)
    first, count = _usable(network)
    number = first + int.from_bytes(digest[8:24]) % count
    return next_free(f"{ipaddress.ip_address(number)}/{network.prefixlen}", taken)


def _check_pool(key: str, address: str | None, pool: str | None) -> None:
    import ipaddress

    if address is None or pool is None:
        return
    if ipaddress.ip_interface(address).ip not in ipaddress.ip_network(pool):
        raise PodError(
            f"network.{key} = {address!r}: is outside of this host's pool {pool}",
            "choose another, or change the pool in network.toml",
        )


def _gateway(address: str | None, gateway: str | None, *, first: bool) -> str | None:
    import ipaddress

    if address is None or not (gateway or first):
        return None
    network = ipaddress.ip_interface(address).network
    return f"{gateway or network[_HOST]}/{network.prefixlen}"


def _ip(address: str | None) -> str | None:
    return address and address.partition("/")[0]


def _ips(of: Identity) -> list[str]:
    """Return the addresses of a pod, and of the host for it."""
    return [address.partition("/")[0] for pair in of.pairs for address in pair if address]


def _refuse_taken(found: Identity, others: Mapping[str, Identity]) -> None:
    own = {_ip(address) for address, _ in found.pairs}
    for name, other in others.items():
        hint = f"if it is no more: autopod rm {name}; if it has moved: autopod relay end {name}"
        for ip in _ips(other):
            if ip in own:
                raise PodError(f"address {ip} is taken by pod {name!r} or the host for it", hint)
        if found.mac == other.mac:
            raise PodError(f"MAC address {found.mac} is taken by pod {name!r}", hint)
        for port in found.ports:
            if any(clash(port, theirs) for theirs in other.ports):
                raise PodError(f"port {port.shown} of the host is published by pod {name!r}", hint)
