"""Raw sockets, and those of ping(8): raw(7), icmp(7). What waits in them is lost."""

import contextlib
import socket
from pathlib import Path
from typing import Final, Literal

import msgspec

from ckpt.kinds import inet, multicast, procinfo, sockets
from ckpt.kinds.multicast import Multicast
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_PING: Final = {socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6}
_TYPES: Final[dict[int, Literal["raw", "ping"]]] = {
    socket.SOCK_RAW: "raw",
    socket.SOCK_DGRAM: "ping",
}
_TABLES: Final = {socket.SOCK_RAW: "raw", socket.SOCK_DGRAM: "icmp"}
# <linux/icmp.h>, <linux/icmpv6.h>: level, option, bytes
_FILTERS: Final = {
    (socket.AF_INET, socket.IPPROTO_ICMP): (255, 1, 4),  # SOL_RAW, ICMP_FILTER
    (socket.AF_INET6, socket.IPPROTO_ICMPV6): (socket.IPPROTO_ICMPV6, 1, 32),  # ICMPV6_FILTER
}


class State(msgspec.Struct, frozen=True):
    """A socket that sends and receives packets of an IP protocol.

    Attributes:
        family: "inet" or "inet6".
        type: "raw", or "ping": of ICMP echo messages only.
        protocol: number of the protocol (IANA, Protocol Numbers).
        address: its own, if it is bound; of a "ping" socket, the port is its identifier.
        peer: what it is connected to, if it is.
        common: options and owner.
        multicast: its groups.
        filter: which ICMP messages it does not receive: struct icmp_filter, icmp6_filter; or empty.
    """

    family: Literal["inet", "inet6"]
    type: Literal["raw", "ping"]
    protocol: int
    address: inet.Address | None
    peer: inet.Address | None
    common: sockets.Common
    multicast: Multicast
    filter: bytes


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    domain, kind, protocol = sockets.family(source)
    return domain in inet.NAMES and (
        kind == socket.SOCK_RAW or (kind == socket.SOCK_DGRAM and protocol in _PING)
    )


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    with sockets.borrowed(source.local_fd) as s:
        common = inet.collect_common(source, {**sockets.TABLES[s.family], **sockets.RAW}, dump)
        if common is None:
            return None
        return State(
            family=inet.NAMES[s.family],
            type=_TYPES[s.type],
            protocol=s.proto,
            address=_bound(s),
            peer=_peer(source, s, dump),
            common=common,
            multicast=multicast.collect(s, dump),
            filter=_filter(s),
        )


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    kind = next(number for number, word in _TYPES.items() if word == state.type)
    s = sockets.make(inet.number(state.family), kind, state.protocol, state.common)
    if state.filter:
        level, option, _ = _FILTERS[s.family, s.proto]
        s.setsockopt(level, option, state.filter)
    inet.bind(s, state.address, state.common)
    multicast.rebuild(s, state.multicast)
    if state.peer is not None:
        s.connect(inet.sockaddr(s, state.peer))
    return sockets.set_status(s, file)


def _bound(s: socket.socket) -> inet.Address | None:
    """Return what *s* is bound to. A raw socket shows its protocol as the port."""
    own = inet.own_address(s)
    if own is None or s.type != socket.SOCK_RAW:
        return own
    nowhere = own.host in {"0.0.0.0", "::"}  # noqa: S104 (nothing listens)
    return None if nowhere else msgspec.structs.replace(own, port=0)


def _peer(source: Source, s: socket.socket, dump: Dump) -> inet.Address | None:
    """Return what *s* is connected to: getpeername(2) tells only where there is a port."""
    name = _TABLES[s.type] + ("6" if s.family == socket.AF_INET6 else "")
    table = Path(f"/proc/{dump.init_host_pid}/net/{name}").read_bytes()
    found = procinfo.parse_peer(table, source.stat.st_ino)
    if found is None or found[0] in {"0.0.0.0", "::"}:  # noqa: S104 (nothing listens)
        return None
    known = inet.peer_address(s)
    return known or inet.Address(*found)


def _filter(s: socket.socket) -> bytes:
    if s.type == socket.SOCK_RAW and (s.family, s.proto) in _FILTERS:
        level, option, length = _FILTERS[s.family, s.proto]
        with contextlib.suppress(OSError):
            return s.getsockopt(level, option, length)
    return b""
