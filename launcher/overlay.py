"""The overlay: one segment for the pods of hosts on different networks. Pure, but for its file.

Each member has a VXLAN device (RFC 7348) that is a port of the pods' bridge, and sends what goes to
everybody to each other member. All bridges have the gateways' addresses, so that a pod finds its
gateway wherever it is: what asks for one, or comes from one, does not pass between members.

A member is told from others by its *mark*, which follows from its key. Frames that it sends have a
MAC address made of the mark; in a pod they are marked with it, a connection that they begin has the
mark, too (tcp_fwmark_accept), and what the pod sends on the connection goes back to that member:
only there is known how addresses were translated. The mark is an option of the socket (SO_MARK),
and so goes through checkpoints, and to the next host.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from launcher import book as books
from launcher.errors import PodError
from launcher.identity import Identity
from launcher.places import Places

OVERHEAD: Final = {4: 50, 6: 70}
"""Bytes that VXLAN puts around a packet, by the version of IP that carries it: RFC 7348."""
ETHERNET: Final = 1500
PREFERENCE: Final = 7463
"""Of the rules that choose a route by mark: after the table `local`, before `main`."""
_HOPS: Final = 254 << 8  # 169.254.1.0 to 169.254.254.255
_OURS: Final = 1 << 30  # keeps clear of what others mark with small numbers


class Member(msgspec.Struct, frozen=True):
    """A host of the overlay.

    Attributes:
        name: as hosts know it.
        address: IP address between members.
        mark: see mark_of().
    """

    name: str
    address: str
    mark: int

    @property
    def mac(self) -> str:
        """Of its bridge."""
        return ":".join(f"{byte:02x}" for byte in (0x02, 0x51, *self.mark.to_bytes(4)))


class Overlay(msgspec.Struct, frozen=True):
    """What a host has made, or is to make; `/var/lib/autopod/overlay.json`.

    Attributes:
        own: this host.
        members: the others.
        vni: number of the segment.
        port: of UDP.
        mtu: bytes of a packet in the pods' network.
        gateways: the bridge's own addresses, with prefix length, besides those for its pods.
    """

    own: Member
    members: tuple[Member, ...]
    vni: int
    port: int
    mtu: int
    gateways: tuple[str, ...]

    @property
    def version(self) -> int:
        """Of IP, between members."""
        return 6 if ":" in self.own.address else 4

    @property
    def everyone(self) -> list[Member]:
        """All members, in an order of their own."""
        return sorted((self.own, *self.members), key=lambda one: one.mark)


class Path(msgspec.Struct, frozen=True):
    """The way to what is behind a member, in a pod.

    Attributes:
        mark: of the member; it is the number of the routing table, too.
        mac: of the member.
        next_hop, next_hop6: addresses that stand for the member, and are known in this pod only.
    """

    mark: int
    mac: str
    next_hop: str
    next_hop6: str


def mark_of(fingerprint: str) -> int:
    """Return the mark of the host whose certificate has *fingerprint*, in hexadecimal digits."""
    return _OURS | (int(fingerprint[:8], 16) & (_OURS - 1))


def device_name(places: Places) -> str:
    """Return the name of the VXLAN device."""
    return f"ap{places.tag}vx" if places.tag else "autopod-vx0"


def paths(overlay: Overlay) -> list[Path]:
    """Return the way to each member, this host included.

    The next hops follow from the marks, so that they stay as members come and go; the IPv4 ones are
    link-local (RFC 3927), too few for all marks: whose is taken has the one after it.
    """
    found: dict[int, Path] = {}
    for one in overlay.everyone:
        number = one.mark % _HOPS
        while number in found:
            number = (number + 1) % _HOPS
        hop = f"169.254.{1 + (number >> 8)}.{number & 0xFF}"
        hop6 = f"fe80::{one.mark >> 16:x}:{one.mark & 0xFFFF:x}"
        found[number] = Path(one.mark, one.mac, hop, hop6)
    return list(found.values())


def gateways(overlay: Overlay, pods: Iterable[Identity]) -> list[str]:
    """Return the addresses that the bridge has, without prefix length."""
    every = [*overlay.gateways, *(g for pod in pods for _, g in pod.pairs if g)]
    return sorted({gateway.partition("/")[0] for gateway in every})


def host_rules(table: str, device: str, overlay: Overlay, own: Iterable[str], link: str) -> str:
    """Return the commands for nft(8) that guard the overlay on the host.

    Who asks for a neighbour asks without saying who (RFC 5227, 2.1.1: an ARP probe), or by an
    address that is the host's alone: the pod would take the sender for its gateway else.

    Args:
        table: name of the two tables.
        device: the VXLAN device.
        overlay: of the host.
        own: the bridge's addresses.
        link: the bridge's IPv6 link-local address.
    """
    family = "ip" if overlay.version == 4 else "ip6"
    known = ", ".join(one.address for one in overlay.members) or overlay.own.address
    four = ", ".join(address for address in own if ":" not in address)
    six = ", ".join(address for address in own if ":" in address)
    incoming, outgoing = [], []
    if four:
        arp = [f"arp {at} ip {{ {four} }} drop" for at in ("daddr", "saddr")]
        incoming += [f'iifname "{device}" {rule}' for rule in arp]
        outgoing += [f'oifname "{device}" arp saddr ip {{ {four} }} arp saddr ip set 0.0.0.0']
    for address in six.split(", ") if six else ():
        kinds = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
        incoming += [f'iifname "{device}" {kinds} @th,64,128 {_number(address)} drop']
    if six:
        asking = f'oifname "{device}" icmpv6 type nd-neighbor-solicit ip6 saddr {{ {six} }}'
        outgoing += [f"{asking} ip6 saddr set {link}"]
    chains = [
        _chain("from_members", "filter hook prerouting priority -300", incoming),
        _chain("to_members", "filter hook output priority 0", outgoing),
    ]
    underlay = [f"udp dport {overlay.port} {family} saddr != {{ {known} }} drop"]
    if overlay.version == 4:
        underlay += [f"meta nfproto ipv6 udp dport {overlay.port} drop"]
    return (
        f"{no_host_rules(table)}"
        f"table bridge {table} {{\n{''.join(chains)}}}\n"
        f"table inet {table} {{\n"
        f"{_chain('underlay', 'filter hook input priority -200', underlay)}}}\n"
    )


def no_host_rules(table: str) -> str:
    """Return the commands that take them away, be they there or not."""
    return "".join(f"table {f} {table}\ndelete table {f} {table}\n" for f in ("bridge", "inet"))


def pod_rules(table: str, overlay: Overlay | None) -> str:
    """Return the commands that mark packets in a pod by the member that has sent them.

    Of TCP the kernel keeps the mark with the connection; of UDP connection tracking does, which has
    nothing to do with the rest.
    """
    begin = f"table inet {table}\ndelete table inet {table}\n"
    if overlay is None:
        return begin
    marks = ", ".join(f"{one.mac} : {one.mark:#x}" for one in overlay.everyone)
    others = ["meta l4proto != udp notrack"]
    coming = [
        f"iifname eth0 meta mark set ether saddr map {{ {marks} }}",
        "meta l4proto udp meta mark != 0 ct mark set meta mark",
    ]
    going = ["meta l4proto udp meta mark 0 ct mark != 0 meta mark set ct mark"]
    chains = [
        _chain("untracked", "filter hook prerouting priority -300", others),
        _chain("untracked_own", "filter hook output priority -300", others),
        _chain("coming", "filter hook prerouting priority -150", coming),
        _chain("going", "route hook output priority -150", going),
    ]
    return f"{begin}table inet {table} {{\n{''.join(chains)}}}\n"


def own_mark(places: Places) -> int:
    """Return this host's mark; 0 if it has no overlay.

    Raises:
        PodError: the file is damaged.
    """
    overlay = read(places)
    return overlay.own.mark if overlay is not None else 0


def read(places: Places) -> Overlay | None:
    """Return what the overlay is to be; None if there is to be none.

    Raises:
        PodError: the file is damaged.
    """
    try:
        return msgspec.json.decode(places.overlay().read_bytes(), type=Overlay)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, msgspec.ValidationError) as e:
        raise PodError(f"{places.overlay()}: {e}", "remove it, then autopod overlay sync") from e


def write(places: Places, overlay: Overlay | None) -> None:
    """Write down what it is to be, in one step."""
    books.write(places.overlay(), overlay)


def check_marks(overlay: Overlay) -> None:
    """Refuse two members with one mark.

    Raises:
        PodError: there are.
    """
    seen: dict[int, str] = {}
    for one in overlay.everyone:
        if other := seen.get(one.mark):
            hint = "give one of them a new key: autopod host init"
            raise PodError(f"hosts {other} and {one.name} have keys that look alike", hint)
        seen[one.mark] = one.name


def check_address(overlay: Overlay, has: Mapping[str, int]) -> None:
    """Refuse an own address that this host does not have, and too large a packet.

    Args:
        overlay: what is to be.
        has: the host's own addresses, and the size of packets at the interface that has each.

    Raises:
        PodError: it cannot be.
    """
    own, most = overlay.own.address, has.get(overlay.own.address)
    if most is None:
        hint = "network.toml, [overlay] address: the one by which the other hosts reach this one"
        raise PodError(f"overlay: {own} is not an address of this host", hint)
    room = most - OVERHEAD[overlay.version]
    if overlay.mtu > room:
        hint = f"network.toml, [overlay] mtu = {room}, on all hosts"
        raise PodError(f"overlay: {own} carries packets of {most} bytes, not {overlay.mtu}", hint)


def _chain(name: str, kind: str, rules: Iterable[str]) -> str:
    body = "".join(f"\t\t{line}\n" for line in (f"type {kind};", *rules))
    return f"\tchain {name} {{\n{body}\t}}\n"


def _number(address: str) -> str:
    import ipaddress

    return f"{int(ipaddress.ip_address(address)):#x}"
