"""Sockets as the kernel lists them: sock_diag(7).

The only place that tells the peer of a unix socket, which connections wait at a listener, what
a packet socket has joined, and that a UDP socket is shut down.
"""

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from ckpt.kinds import abi

# <linux/{netlink,sock_diag,unix_diag,packet_diag,inet_diag}.h>
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_SHOW_PEER, _SHOW_ICONS, _SHOW_RQLEN = 0x04, 0x08, 0x10
_DIAG_PEER, _DIAG_ICONS, _DIAG_RQLEN, _DIAG_SHUTDOWN = 2, 3, 4, 6
_PACKET_SHOW_INFO, _PACKET_SHOW_MCLIST, _PACKET_SHOW_RING_CFG = 0x01, 0x02, 0x04
_PACKET_INFO, _PACKET_MCLIST, _PACKET_RX_RING, _PACKET_TX_RING = range(4)
_PACKET_REQUEST: Final = struct.Struct("=BBHIIII")
_PACKET_MESSAGE: Final = struct.Struct("=BBHIII")
_PACKET_JOINED: Final = struct.Struct("=IIHH32s")
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBHIIIII")
_MESSAGE: Final = struct.Struct("=BBBBIII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_LISTEN: Final = 10


_INET_REQUEST: Final = struct.Struct("=BBBxI48x")
_INET_MESSAGE: Final = struct.Struct("=BBBB48xIIIII")
_INET_DIAG_SHUTDOWN: Final = 8
_ANY_STATE: Final = 0xFFFFFFFF


class UnixSocket(msgspec.Struct, frozen=True):
    """A unix socket of a network namespace.

    Attributes:
        inode: of the socket; 0 where nobody has accepted it yet.
        listening: does it wait for connections?
        peer: inode of the other end; 0 if that was never accepted, or is closed; None if the
            socket is not connected.
        waiting: at a listener: the inodes of the clients that wait to be accepted, in order; 0
            for one that has gone again.
        backlog: of a listener.
        shutdown: SHUT_RD + 1 and SHUT_WR + 1 together, as the kernel's RCV_ and SEND_SHUTDOWN.
    """

    inode: int
    listening: bool
    peer: int | None
    waiting: tuple[int, ...]
    backlog: int
    shutdown: int


class Joined(msgspec.Struct, frozen=True):
    """What a packet socket has joined, *count* times: the type is one of PACKET_MR_*."""

    interface: int
    count: int
    type: int
    address: bytes


class PacketSocket(msgspec.Struct, frozen=True):
    """A packet socket of a network namespace.

    Attributes:
        inode: of the socket.
        protocol: number of what it receives (EtherType).
        interface: index of the one that it is bound to; 0: all; -1: one that is gone.
        joined: its memberships.
        ringed: has it rings of memory that it shares with its program?
    """

    inode: int
    protocol: int
    interface: int
    joined: tuple[Joined, ...]
    ringed: bool


def packet_sockets(host_pid: int) -> dict[int, PacketSocket]:
    """Return the packet sockets in the network namespace of *host_pid*, by inode.

    Raises:
        OSError: as setns(2) and netlink(7); ENOENT: this kernel has no packet_diag.
    """
    show = _PACKET_SHOW_INFO | _PACKET_SHOW_MCLIST | _PACKET_SHOW_RING_CFG
    request = _PACKET_REQUEST.pack(socket.AF_PACKET, 0, 0, 0, show, 0, 0)
    return {found.inode: found for found in map(_parse_packet, _ask(host_pid, request))}


def unix_sockets(host_pid: int) -> dict[int, UnixSocket]:
    """Return the unix sockets in the network namespace of *host_pid*, by inode.

    Raises:
        OSError: as setns(2) and netlink(7).
    """
    show = _SHOW_PEER | _SHOW_ICONS | _SHOW_RQLEN
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, show, 0, 0)
    return {found.inode: found for found in map(_parse, _ask(host_pid, request))}


def udp_shutdowns(host_pid: int, family: int) -> dict[int, int]:
    """Return which directions of UDP sockets are shut down, as UnixSocket.shutdown, by inode.

    Of all in the network namespace of *host_pid*; none where this kernel has no udp_diag.

    Raises:
        OSError: as setns(2) and netlink(7).
    """
    request = _INET_REQUEST.pack(family, socket.IPPROTO_UDP, 0, _ANY_STATE)
    try:
        return dict(map(_parse_inet, _ask(host_pid, request)))
    except FileNotFoundError:
        return {}


def _ask(host_pid: int, request: bytes) -> Iterator[bytes]:
    """Return what the kernel answers in the network namespace of *host_pid*, a socket each."""
    with _socket_in(host_pid) as s:
        length = _HEADER.size + len(request)
        s.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + request)
        yield from _answers(s)


def _socket_in(host_pid: int) -> socket.socket:
    """Return a netlink socket of another network namespace; we come back to our own."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{host_pid}/ns/net", os.O_RDONLY)
    try:
        abi.setns(there, abi.CLONE_NEWNET)
        try:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        finally:
            abi.setns(own, abi.CLONE_NEWNET)
    finally:
        os.close(own)
        os.close(there)


def _answers(s: socket.socket) -> Iterator[bytes]:
    while True:
        data = s.recv(1 << 16)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                err = -struct.unpack_from("=i", body)[0]
                raise OSError(err, f"sock_diag: {os.strerror(err)}")
            yield body


def _parse(body: bytes) -> UnixSocket:
    _, _, state, _, inode, _, _ = _MESSAGE.unpack_from(body)
    attributes = dict(_attributes(body[_MESSAGE.size :]))
    peer = attributes.get(_DIAG_PEER)
    icons = attributes.get(_DIAG_ICONS, b"")
    queue, limit = struct.unpack("=II", attributes.get(_DIAG_RQLEN, bytes(8)))
    del queue
    return UnixSocket(
        inode=inode,
        listening=state == _LISTEN,
        peer=None if peer is None else int.from_bytes(peer, "little"),
        waiting=struct.unpack(f"={len(icons) // 4}I", icons),
        backlog=limit if state == _LISTEN else 0,
        shutdown=attributes.get(_DIAG_SHUTDOWN, b"\0")[0],
    )


def _parse_inet(body: bytes) -> tuple[int, int]:
    *_, inode = _INET_MESSAGE.unpack_from(body)
    attributes = dict(_attributes(body[_INET_MESSAGE.size :]))
    return inode, attributes.get(_INET_DIAG_SHUTDOWN, b"\0")[0]


def _parse_packet(body: bytes) -> PacketSocket:
    _, _, protocol, inode, _, _ = _PACKET_MESSAGE.unpack_from(body)
    attributes = dict(_attributes(body[_PACKET_MESSAGE.size :]))
    joined = (
        Joined(interface, count, kind, address[:length])
        for interface, count, kind, length, address in _PACKET_JOINED.iter_unpack(
            attributes.get(_PACKET_MCLIST, b"")
        )
    )
    (interface,) = struct.unpack_from("=i", attributes[_PACKET_INFO])
    ringed = not {_PACKET_RX_RING, _PACKET_TX_RING}.isdisjoint(attributes)
    return PacketSocket(inode, protocol, interface, tuple(joined), ringed)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
