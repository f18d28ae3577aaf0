"""Packet sockets: packet(7). What waits in them is lost."""

import errno
import socket
import struct
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from ckpt.kinds import abi, inet, sockdiag, sockets
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

# <linux/if_packet.h>
_SOL_PACKET: Final = 263
_ADD_MEMBERSHIP: Final = 1
_FANOUT: Final = 18
_MEMBERSHIPS: Final = ("multicast", "promiscuous", "all-multicast", "unicast")
"""PACKET_MR_*, by number."""
_SOCKADDR_LL: Final = struct.Struct("=HHiHBB8s")
_PACKET_MREQ_MAX: Final = struct.Struct("=iHH32s")
_TYPES: Final[dict[int, Literal["raw", "dgram"]]] = {
    socket.SOCK_RAW: "raw",
    socket.SOCK_DGRAM: "dgram",
}


class Membership(msgspec.Struct, frozen=True):
    """Packets that an interface receives for a socket.

    Attributes:
        interface: its name.
        type: "multicast", "promiscuous", "all-multicast" or "unicast".
        address: in the network layer of the interface; empty if the type needs none.
        count: how many times it was joined.
    """

    interface: str
    type: str
    address: bytes
    count: int


class State(msgspec.Struct, frozen=True):
    """A socket that sends and receives packets as they are on the wire.

    Attributes:
        type: "raw", or "dgram": without the header of the link layer.
        protocol: number of what it receives (EtherType; 3 is all, 0 nothing).
        interface: name of the one that it is bound to; "": all.
        joined: its memberships.
        common: options and owner.
    """

    type: Literal["raw", "dgram"]
    protocol: int
    interface: str
    joined: list[Membership]
    common: sockets.Common


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    domain, kind, _ = sockets.family(source)
    return domain == socket.AF_PACKET and kind in _TYPES


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    listed = dump.once("packet", lambda: _listed(dump.init_host_pid))
    if listed is None:
        dump.refuse(source, "this kernel does not tell what it has joined (packet_diag)")
        return None
    with sockets.borrowed(source.local_fd) as s:
        common = inet.collect_common(source, sockets.TABLES[s.family], dump)
        found = listed.get(source.stat.st_ino)
        if found is None:
            dump.refuse(source, "it is not of the pod's network")
        elif found.ringed:
            dump.refuse(source, "it has a ring of packets (PACKET_RX_RING, PACKET_TX_RING)")
        elif s.getsockopt(_SOL_PACKET, _FANOUT):
            dump.refuse(source, "it shares packets with other sockets (PACKET_FANOUT)")
        elif found.interface < 0:
            dump.refuse(source, "the interface that it is bound to has gone")
        elif common is not None:
            name = inet.interface_name(s, found.interface) if found.interface else ""
            joined = [_membership(s, one) for one in found.joined]
            return State(_TYPES[s.type], found.protocol, name, joined, common)
    return None


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind. It receives nothing before it has its options and its filter."""
    kind = next(number for number, word in _TYPES.items() if word == state.type)
    s = sockets.make(socket.AF_PACKET, kind, 0, state.common)
    for one in state.joined:
        _join(s, one)
    index = socket.if_nametoindex(state.interface) if state.interface else 0
    protocol = socket.htons(state.protocol)
    abi.bind(s.fileno(), _SOCKADDR_LL.pack(socket.AF_PACKET, protocol, index, 0, 0, 0, bytes(8)))
    return sockets.set_status(s, file)


def _listed(host_pid: int) -> Mapping[int, sockdiag.PacketSocket] | None:
    try:
        return sockdiag.packet_sockets(host_pid)
    except OSError as e:
        if e.errno != errno.ENOENT:
            raise
        return None


def _membership(s: socket.socket, one: sockdiag.Joined) -> Membership:
    name = inet.interface_name(s, one.interface)
    return Membership(name, _MEMBERSHIPS[one.type], one.address, one.count)


def _join(s: socket.socket, one: Membership) -> None:
    index, kind = socket.if_nametoindex(one.interface), _MEMBERSHIPS.index(one.type)
    packed = _PACKET_MREQ_MAX.pack(index, kind, len(one.address), one.address)
    for _ in range(one.count):
        s.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, packed)
