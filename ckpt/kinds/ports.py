"""Which sockets share a port in a way that bind(2) and listen(2) would not let them share it now.

SO_REUSEADDR and SO_REUSEPORT count when a socket is bound and when it begins to listen; programs
may take them back afterwards, and a socket with SO_REUSEADDR may be bound before the other one
listens, but not after that. So while such sockets are made, they have what lets them share.
Pure, but for give_back().

Source: Linux v6.1, net/ipv4/inet_connection_sock.c, inet_bind_conflict(); net/ipv4/udp.c,
udp_lib_lport_inuse(); net/ipv6/inet6_hashtables.c, ipv6_rcv_saddr_equal().
"""

import ipaddress
import socket
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import Final

import msgspec

from ckpt.kinds import inet, sockets

LENT: Final = ("reuseaddr", "reuseport")


class Bound(msgspec.Struct, frozen=True):
    """A socket that has a port; *address*, *common* are those of its State."""

    address: inet.Address
    common: sockets.Common
    listens: bool = False

    def has(self, option: str) -> bool:
        """Is the option on, by now?"""
        return self.common.options.get(option, [0]) != [0]


def lent_options(bound: Mapping[int, Bound]) -> dict[int, set[str]]:
    """Return which of LENT some sockets need meanwhile; give_back() ends that.

    Args:
        bound: all sockets of one protocol, by any number.
    """
    by_port = defaultdict(list)
    for key, one in bound.items():
        by_port[one.address.port].append(key)
    lent: dict[int, set[str]] = defaultdict(set)
    for keys in by_port.values():
        for pair in combinations(keys, 2):
            one, other = (bound[key] for key in pair)
            if _overlap(one, other) and not _may_share(one, other):
                for key in pair:
                    lent[key].add(_remedy(one, other))
    return dict(lent)


def give_back(s: socket.socket, common: sockets.Common) -> None:
    """Set the options of LENT as they were: all sockets are bound and listen."""
    sockets.set_options(s, {name: common.options[name] for name in LENT if name in common.options})


def _overlap(one: Bound, other: Bound) -> bool:
    devices = {one.common.device, other.common.device} - {""}
    interfaces = {one.address.interface, other.address.interface} - {""}
    (versions, host), (other_versions, other_host) = _covered(one), _covered(other)
    return (
        len(devices) < 2
        and len(interfaces) < 2
        and bool(versions & other_versions)
        and (host == other_host or host is None or other_host is None)
    )


def _covered(bound: Bound) -> tuple[set[int], str | None]:
    """Return for which versions of IP a socket is there, and its host; None: all of them."""
    host = ipaddress.ip_address(bound.address.host)
    versions: set[int] = {host.version}
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is not None:
            host, versions = host.ipv4_mapped, {4}
        elif host.is_unspecified and not bound.has("ipv6_v6only"):
            versions = {4, 6}
    return versions, None if host.is_unspecified else str(host)


def _may_share(one: Bound, other: Bound) -> bool:
    """Would they be let share, with their options of now, in whichever order they are made?"""
    by_port = one.has("reuseport") and other.has("reuseport")
    by_address = one.has("reuseaddr") and other.has("reuseaddr")
    listening = one.listens or other.listens
    return (by_port and _same_user(one, other)) or (by_address and not listening)


def _remedy(one: Bound, other: Bound) -> str:
    """Return by which option they came to share: what is left of it tells, or that both listen."""
    by_port = one.has("reuseport") or other.has("reuseport") or (one.listens and other.listens)
    return "reuseport" if by_port and _same_user(one, other) else "reuseaddr"


def _same_user(one: Bound, other: Bound) -> bool:
    return one.common.uid == other.common.uid
