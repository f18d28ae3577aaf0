"""Addresses of the Internet families, for tcp and udp."""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from ckpt.kinds import sockets
from ckpt.kinds.protocol import Dump, Source

NAMES: Final[Mapping[int, Literal["inet", "inet6"]]] = {
    socket.AF_INET: "inet",
    socket.AF_INET6: "inet6",
}
_SIOCGIFNAME: Final = 0x8910
_IP_FREEBIND: Final = 15


class Address(msgspec.Struct, frozen=True):
    """An IP address and port.

    Attributes:
        host: as text.
        port: in host order.
        flow: IPv6 flow information.
        interface: name of the interface that a link-local address belongs to, or "".
    """

    host: str
    port: int
    flow: int = 0
    interface: str = ""


def number(family: str) -> int:
    """Return the number of the address family.

    Raises:
        ValueError: it is unknown.
    """
    for value, name in NAMES.items():
        if name == family:
            return value
    raise ValueError(f"unknown address family {family!r}")


def own_address(s: socket.socket) -> Address | None:
    """Return what *s* is bound to; None if it is not."""
    own = address(s, s.getsockname())
    return None if not own.port and own.host in {"0.0.0.0", "::"} else own  # noqa: S104


def peer_address(s: socket.socket) -> Address | None:
    """Return what *s* is connected to; None if it is not."""
    try:
        return address(s, s.getpeername())
    except OSError as e:
        if e.errno != errno.ENOTCONN:
            raise
        return None


def collect_common(source: Source, table: sockets.Table, dump: Dump) -> sockets.Common | None:
    """Return the common part; None after a refusal."""
    try:
        return sockets.collect_common(source, table)
    except PermissionError:
        dump.refuse(source, "a BPF program is attached to it")
        return None


def bind(s: socket.socket, to: Address | None, common: sockets.Common) -> None:
    """Bind *s* to the address *to*, which need not be up yet (an IPv6 one takes a second)."""
    if to is None:
        return
    s.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    s.bind(sockaddr(s, to))
    wanted = [common.options.get(name, [0])[0] for name in ("ip_freebind", "ipv6_freebind")]
    s.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, max(wanted))


def sockaddr(s: socket.socket, to: Address) -> tuple[Any, ...]:
    """Return *to* as the socket module takes it."""
    if s.family == socket.AF_INET:
        return to.host, to.port
    scope = socket.if_nametoindex(to.interface) if to.interface else 0
    return to.host, to.port, to.flow, scope


def address(s: socket.socket, name: Any) -> Address:  # noqa: ANN401 (as the socket module has it)
    """Return *name*, a socket's as the socket module has it; scopes are of the namespace of *s*."""
    if s.family == socket.AF_INET:
        return Address(name[0], name[1])
    interface = interface_name(s, name[3]) if name[3] else ""
    return Address(name[0].partition("%")[0], name[1], name[2], interface)


def interface_name(s: socket.socket, index: int) -> str:
    """Return the name of an interface in the network namespace of *s*: netdevice(7)."""
    request = struct.pack("16si20x", b"", index)
    answer = fcntl.ioctl(s.fileno(), _SIOCGIFNAME, request)
    return os.fsdecode(answer[:16].rstrip(b"\0"))
