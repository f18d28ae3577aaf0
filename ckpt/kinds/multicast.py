"""Multicast groups that a socket has joined, and where it sends multicasts from: ip(7), ipv6(7).

The kernel lists which groups are joined at which interface, but not by whom; a socket that is asked
for the sources that it accepts from a group says whether it is a member.
"""

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from ckpt.kinds import abi, procinfo
from ckpt.kinds.protocol import Dump

# <linux/in.h>, <linux/in6.h>; the same for both families
_MCAST_JOIN_GROUP: Final = 42
_MCAST_MSFILTER: Final = 48
_MCAST_EXCLUDE, _MCAST_INCLUDE = 0, 1
_STORAGE: Final = 128  # struct __kernel_sockaddr_storage
_FILTER: Final = struct.Struct(f"=I4x{_STORAGE}sII")  # struct group_filter, without its sources
_REQUEST: Final = struct.Struct(f"=I4x{_STORAGE}s")  # struct group_req
_MOST_SOURCES: Final = 64


class Membership(msgspec.Struct, frozen=True):
    """A group that a socket has joined.

    Attributes:
        interface: name of the interface.
        group: its address.
        only: are *sources* those that are accepted, and not those that are refused?
        sources: addresses.
    """

    interface: str
    group: str
    only: bool
    sources: list[str]


class Multicast(msgspec.Struct, frozen=True):
    """What a socket has to do with multicasts.

    Attributes:
        joined: its groups.
        address: IPv4 address that it sends from, or "".
        interface: name of the interface that it sends IPv6 from, or "".
    """

    joined: list[Membership] = []
    address: str = ""
    interface: str = ""


def collect(s: socket.socket, dump: Dump) -> Multicast:
    """Return the state of *s*, in the network namespace of the pod."""
    known = dump.once("multicast", lambda: _groups(dump.init_host_pid))
    address, interface = "", ""
    if s.family == socket.AF_INET6:
        index = s.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF)
        interface = next((g.interface for g in known if g.index == index), "")
    with contextlib.suppress(OSError):  # a raw IPv6 socket has no options of IPv4
        packed = s.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, 4)
        address = socket.inet_ntoa(packed) if any(packed) else ""
    known = sorted(known, key=lambda group: (group.index, group.address))
    joined = [found for group in known if (found := _membership(s, group)) is not None]
    return Multicast(joined, address, interface)


def rebuild(s: socket.socket, state: Multicast) -> None:
    """Join the groups again."""
    if state.address:
        packed = socket.inet_aton(state.address)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, packed)
    if state.interface:
        index = socket.if_nametoindex(state.interface)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    for membership in state.joined:
        level, group = _level(membership.group), _storage(membership.group)
        index = socket.if_nametoindex(membership.interface)
        s.setsockopt(level, _MCAST_JOIN_GROUP, _REQUEST.pack(index, group))
        if membership.only or membership.sources:
            mode = _MCAST_INCLUDE if membership.only else _MCAST_EXCLUDE
            sources = b"".join(map(_storage, membership.sources))
            packed = _FILTER.pack(index, group, mode, len(membership.sources)) + sources
            s.setsockopt(level, _MCAST_MSFILTER, packed)


def _groups(host_pid: int) -> Sequence[procinfo.Group]:
    """Return the multicast groups that are joined in the pod's network."""
    return procinfo.parse_groups(*(_read(host_pid, name) for name in ("igmp", "igmp6")))


def _read(host_pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{host_pid}/net/{name}").read_bytes()
    except FileNotFoundError:  # a kernel without that family
        return b""


def _membership(s: socket.socket, group: procinfo.Group) -> Membership | None:
    """Return the membership of *s* in *group*; None if it is no member.

    Source: net/ipv4/igmp.c, ip_mc_gsfget(); net/ipv6/mcast.c, ip6_mc_msfget(): EADDRNOTAVAIL.
    """
    if ":" in group.address and s.family != socket.AF_INET6:
        return None
    asked = _FILTER.pack(group.index, _storage(group.address), 0, _MOST_SOURCES)
    room = asked + bytes(_STORAGE * _MOST_SOURCES)
    try:
        answer = abi.getsockopt(s.fileno(), _level(group.address), _MCAST_MSFILTER, room)
    except OSError:
        return None
    _, _, mode, count = _FILTER.unpack_from(answer)
    sources = [
        _address(answer[_FILTER.size + at * _STORAGE :]) for at in range(min(count, _MOST_SOURCES))
    ]
    return Membership(group.interface, group.address, mode == _MCAST_INCLUDE, sources)


def _level(group: str) -> int:
    return socket.IPPROTO_IPV6 if ":" in group else socket.IPPROTO_IP


def _storage(host: str) -> bytes:
    """Return a struct sockaddr_storage: sockaddr_in of ip(7), sockaddr_in6 of ipv6(7)."""
    address = ipaddress.ip_address(host)
    if address.version == 4:
        return struct.pack("=HH4s", socket.AF_INET, 0, address.packed).ljust(_STORAGE, b"\0")
    return struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address.packed, 0).ljust(_STORAGE, b"\0")


def _address(storage: bytes) -> str:
    (family,) = struct.unpack_from("=H", storage)
    packed = storage[4:8] if family == socket.AF_INET else storage[8:24]
    return str(ipaddress.ip_address(packed))
