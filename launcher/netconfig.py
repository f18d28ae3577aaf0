"""How a pod is to be reached: table `network` of its file, and the host's `network.toml`."""

import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from launcher import toml
from launcher.places import Places
from launcher.toml import Table, reject

if TYPE_CHECKING:
    from ipaddress import IPv4Interface, IPv6Interface

POOL: Final = "10.98.0.0/16"
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_INTERFACE: Final = re.compile(r"[^\s/:]{1,15}")
_PUBLISHED: Final = re.compile(r"(?:([0-9.]+):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp))?")


class Port(msgspec.Struct, frozen=True):
    """A port of the host that leads to one of the pod.

    Attributes:
        protocol: "tcp" or "udp".
        host: the host's own address, IPv4; None: each of them.
        port: the host's.
        to: the pod's.
    """

    protocol: str
    host: str | None
    port: int
    to: int

    @property
    def shown(self) -> str:
        """As a person writes it, but for the pod's port."""
        return f"{f'{self.host}:' if self.host else ''}{self.port}/{self.protocol}"


class Network(Table, frozen=True):
    """The pod's addresses. They belong to the pod, are kept for its life, and move with it.

    Attributes:
        mode: "bridge": a port of the host's bridge; "macvlan": an address of its own in the
            network of the host's interface *parent*; "none": a loopback interface only.
        address: IPv4 address with prefix length; None: from the host's pool.
        address6: IPv6 address with prefix length; None: from the host's pool, if it has one.
        gateway: of *address*; with "bridge" the host itself has it there. None: the first of the
            network with "bridge", no default route with "macvlan".
        gateway6: of *address6*, likewise.
        mac: None: derived from instance and pod name.
        parent: of "macvlan".
        nat: what lies beyond the host can be reached, with the host's address for the pod's.
        publish: ports of the host that lead to the pod's: `[ADDRESS:]PORT:PORT[/udp]`.
        tcp: what a checkpoint, and a restart, does with open TCP connections: "keep": they go on;
            "close": their peers are told that they have ended; "listen-only": only listening
            sockets are carried over, and nobody is told.
    """

    mode: Literal["bridge", "macvlan", "none"] = "bridge"
    address: str | None = None
    address6: str | None = None
    gateway: str | None = None
    gateway6: str | None = None
    mac: str | None = None
    parent: str | None = None
    nat: bool = False
    publish: tuple[str, ...] = ()
    tcp: Literal["keep", "close", "listen-only"] = "keep"

    def __post_init__(self) -> None:
        _check_mac(self.mac)
        self._check_mode()
        if any(
            one is not None for one in (self.address, self.address6, self.gateway, self.gateway6)
        ):
            _check_pair("address", self.address, "gateway", self.gateway, own=self._own)
            _check_pair("address6", self.address6, "gateway6", self.gateway6, own=self._own)
        ports = [_port(text) for text in self.publish]
        for text, port in zip(self.publish, ports, strict=True):
            if any(clash(port, other) for other in ports if other is not port):
                reject("publish", text, "the port is published twice")

    @property
    def _own(self) -> bool:
        """Has the host itself the gateway's address?"""
        return self.mode == "bridge"

    def _check_mode(self) -> None:
        if self.mode != "bridge" and (self.nat or self.publish):
            key = "nat" if self.nat else "publish"
            reject(key, getattr(self, key), f'is for mode "bridge", not "{self.mode}"')
        if self.mode == "macvlan":
            if self.parent is None or not _INTERFACE.fullmatch(self.parent):
                reject("parent", self.parent, "must be the name of the host's interface")
            if not (self.address or self.address6):
                reject("address", self.address, 'is needed with mode "macvlan"')
        elif self.parent is not None:
            reject("parent", self.parent, f'is for mode "macvlan", not "{self.mode}"')
        if self.mode == "none":
            for key in ("address", "address6", "mac"):
                if getattr(self, key) is not None:
                    reject(key, getattr(self, key), 'mode "none" has none')

    @property
    def ports(self) -> tuple[Port, ...]:
        """What is published."""
        return tuple(map(_port, self.publish))


class Tunnel(Table, frozen=True):
    """How this host takes part in the overlay between hosts: launcher/overlay.py.

    Attributes:
        address: its own IP address, by which the others reach it; None: that of autopod host init.
        vni: number of the segment, the same on all hosts.
        port: of UDP, the same on all hosts.
        mtu: bytes of a packet in the pods' network, the same on all hosts; None: what Ethernet
            between the hosts leaves, 1450, or 1430 with IPv6.
    """

    address: str | None = None
    vni: int = 7463
    port: int = 7463
    mtu: int | None = None

    def __post_init__(self) -> None:
        import ipaddress

        if self.address is not None:
            try:
                ipaddress.ip_address(self.address)
            except ValueError as e:
                reject("address", self.address, str(e))
        if not 0 < self.vni < 1 << 24:
            reject("vni", self.vni, f"must be 1 to {(1 << 24) - 1}")
        if not 0 < self.port < 1 << 16:
            reject("port", self.port, "must be 1 to 65535")
        if self.mtu is not None and not 1280 <= self.mtu <= 65535:
            reject("mtu", self.mtu, "must be 1280 to 65535")


class Pools(Table, frozen=True):
    """What pods of this host share in the network: `/etc/autopod/network.toml`.

    Attributes:
        pool: IPv4 network of pods on the bridge; None: 10.98.0.0/16, and a pod may be given any
            other. The first address is the host's.
        pool6: IPv6 network of them; None: a pod has no IPv6 address but one that it is given.
        overlay: this host is in the overlay.
    """

    pool: str | None = None
    pool6: str | None = None
    overlay: Tunnel | None = None

    def __post_init__(self) -> None:
        import ipaddress

        for key, kind in (("pool", ipaddress.IPv4Network), ("pool6", ipaddress.IPv6Network)):
            value = getattr(self, key)
            try:
                network = kind(value) if value is not None else None
            except ValueError as e:
                reject(key, value, str(e))
            if network is not None and network.num_addresses < 4:
                reject(key, value, "has no room for a pod")


def clash(one: Port, other: Port) -> bool:
    """Can they not both be published?"""
    same = (one.protocol, one.port) == (other.protocol, other.port)
    return same and (one.host == other.host or None in (one.host, other.host))


def pools(places: Places) -> Pools:
    """Return the host's pools.

    Raises:
        ConfigError: the file cannot be understood.
    """
    path = places.network_config()
    try:
        return toml.decode(path.read_bytes(), path, Pools)
    except FileNotFoundError:
        return Pools()


def _check_mac(mac: str | None) -> None:
    if mac is not None and not _MAC.fullmatch(mac):
        reject("mac", mac, "must be six pairs of lower-case hexadecimal digits, like 02:50:…")
    if mac is not None and int(mac[:2], 16) & 1:
        reject("mac", mac, "is a multicast address")
    if mac is not None and not mac.strip("0:"):
        reject("mac", mac, "is nobody's address")


def _port(text: str) -> Port:
    import ipaddress

    found = _PUBLISHED.fullmatch(text)
    if found is None or not all(0 < int(found[n]) < 65536 for n in (2, 3)):
        reject("publish", text, "must be like 8080:80, 53:53/udp or 192.0.2.1:8080:80")
    if found[1] is not None:
        try:
            ipaddress.IPv4Address(found[1])
        except ValueError as e:
            reject("publish", text, str(e))
    return Port(found[4] or "tcp", found[1], int(found[2]), int(found[3]))


def _check_pair(
    key: str, address: str | None, gateway_key: str, gateway: str | None, *, own: bool
) -> None:
    """Check an address and its gateway; *own* if the host has the latter."""
    if address is None:
        if gateway is not None:
            reject(gateway_key, gateway, "needs an address beside it")
        return
    interface = _interface(key, address)
    network = interface.network
    if interface.ip == network.network_address or (
        interface.version == 4 and interface.ip == network.broadcast_address
    ):
        reject(key, address, "is the address of the network itself")
    chosen = _gateway(gateway_key, gateway, interface)
    if interface.ip == chosen or (own and not gateway and interface.ip == network[1]):
        reject(key, address, "is the gateway's")


def _interface(key: str, address: str) -> "IPv4Interface | IPv6Interface":
    import ipaddress

    kind = ipaddress.IPv6Interface if key.endswith("6") else ipaddress.IPv4Interface
    example = "fd98::10/64" if key.endswith("6") else "10.98.0.10/24"
    try:
        interface = kind(address)
    except ValueError:
        reject(key, address, f"must be like {example}")
    if interface.is_multicast or interface.ip.is_loopback or interface.is_unspecified:
        reject(key, address, "is no machine's address in a network")
    most = interface.max_prefixlen - 2
    if "/" not in address or not 1 <= interface.network.prefixlen <= most:
        reject(key, address, f"needs a prefix length of 1 to {most}")
    return interface


def _gateway(key: str, gateway: str | None, own: "IPv4Interface | IPv6Interface") -> object:
    if gateway is None:
        return None
    try:
        found = type(own.ip)(gateway)
    except ValueError:
        reject(key, gateway, f"must be an IPv{own.version} address")
    if found not in own.network:
        reject(key, gateway, f"is outside of the pod's network {own.network}")
    return found
