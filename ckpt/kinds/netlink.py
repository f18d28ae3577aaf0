"""Routing sockets: netlink(7), rtnetlink(7). They talk to the pod's own network namespace."""

import socket
import struct
from typing import Final

import msgspec

from ckpt.kinds import sockets
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_LIST_MEMBERSHIPS: Final = 9
_ROOM: Final = 128


class State(msgspec.Struct, frozen=True):
    """A socket of NETLINK_ROUTE.

    Attributes:
        type: "raw" or "dgram", which mean the same.
        port: its port id; 0 if it is not bound.
        groups: numbers of the multicast groups that it has joined (RTNLGRP_*: link, address,
            route, … are the same on every architecture).
        common: options and owner.
    """

    type: str
    port: int
    groups: list[int]
    common: sockets.Common


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    domain, _, protocol = sockets.family(source)
    return domain == socket.AF_NETLINK and protocol == socket.NETLINK_ROUTE


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    with sockets.borrowed(source.local_fd) as s:
        if sockets.is_readable(s) and not dump.looking_only:
            dump.refuse(source, "messages of the kernel wait in it", "try again in a moment")
            return None
        port, _ = s.getsockname()
        return State(
            type="raw" if s.type == socket.SOCK_RAW else "dgram",
            port=port,
            groups=_groups(s),
            common=sockets.collect_common(source, sockets.TABLES[socket.AF_NETLINK]),
        )


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    kind = socket.SOCK_RAW if state.type == "raw" else socket.SOCK_DGRAM
    s = sockets.make(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE, state.common)
    if state.port:
        s.bind((state.port, 0))
    for group in state.groups:
        s.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    return sockets.set_status(s, file)


def _groups(s: socket.socket) -> list[int]:
    """Return the groups, one bit each from the lowest. Source: NETLINK_LIST_MEMBERSHIPS."""
    data = s.getsockopt(_SOL_NETLINK, _LIST_MEMBERSHIPS, _ROOM)
    words = struct.unpack(f"{len(data) // 4}I", data[: len(data) // 4 * 4])
    return [
        32 * at + bit + 1 for at, word in enumerate(words) for bit in range(32) if word >> bit & 1
    ]
