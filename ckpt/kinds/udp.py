"""UDP sockets: udp(7). What waits in them comes again, from its sender, when the pod goes on."""

import contextlib
import fcntl
import ipaddress
import socket
import struct
import termios
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ckpt.kinds import inet, multicast, ports, sockdiag, sockets
from ckpt.kinds.forge import Forge
from ckpt.kinds.multicast import Multicast
from ckpt.kinds.protocol import Dump, Loader, Source, Workshop
from ckpt.model import OpenFile

_SO_PEEK_OFF: Final = 42
_LARGEST: Final = 1 << 16
_IP_RECVORIGDSTADDR: Final = 20
_IPV6_RECVORIGDSTADDR: Final = 74
_NOBODY: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class Datagram(msgspec.Struct, frozen=True):
    """A datagram that waits to be read.

    Attributes:
        sender: whom it is from.
        target: the address of the pod that it was sent to.
        first_page, length: what is in it.
    """

    sender: inet.Address
    target: str
    first_page: int
    length: int


class State(msgspec.Struct, frozen=True):
    """A UDP socket.

    Attributes:
        family: "inet" or "inet6".
        address: its own, if it is bound.
        peer: what it is connected to, if it is.
        common: options and owner.
        multicast: its groups.
        waiting: in the order in which they came.
        shutdown: which directions are shut down, as sockdiag.UnixSocket.shutdown.
    """

    family: str
    address: inet.Address | None
    peer: inet.Address | None
    common: sockets.Common
    multicast: Multicast = Multicast()
    waiting: list[Datagram] = []
    shutdown: int = 0


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    domain, kind, protocol = sockets.family(source)
    return domain in inet.NAMES and kind == socket.SOCK_DGRAM and protocol == socket.IPPROTO_UDP


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    with sockets.borrowed(source.local_fd) as s:
        common = inet.collect_common(source, {**sockets.TABLES[s.family], **sockets.UDP}, dump)
        if common is None:
            return None
        if common.options["udp_cork"] != [0] and _holds_something(s):
            dump.refuse(source, "it is corked: a datagram is being put together")
            return None
        return State(
            family=inet.NAMES[s.family],
            address=inet.own_address(s),
            peer=inet.peer_address(s),
            common=common,
            multicast=multicast.collect(s, dump),
            waiting=[] if dump.looking_only else list(_waiting(s, dump)),
            shutdown=_shutdown(s, source, dump),
        )


def _shutdown(s: socket.socket, source: Source, dump: Dump) -> int:
    """Which directions are shut down? That needs a peer: udp(7), ENOTCONN."""
    if inet.peer_address(s) is None:
        return 0
    known = dump.once(
        f"udp {s.family}", lambda: sockdiag.udp_shutdowns(dump.init_host_pid, s.family)
    )
    return known.get(source.stat.st_ino, 0)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    s = sockets.make(inet.number(state.family), socket.SOCK_DGRAM, 0, state.common)
    lent = workshop.once("udp ports", lambda: _lent(workshop)).get(file.id, set())
    sockets.set_options(s, {name: [1] for name in lent})
    inet.bind(s, state.address, state.common)
    multicast.rebuild(s, state.multicast)
    if not _has_strangers(state):
        _connect(state, s)
    return sockets.set_status(s, file)


def complete(state: State, fd: int, workshop: Workshop) -> None:
    """See protocol.Completing: take back what it was lent."""
    with sockets.borrowed(fd) as s:
        ports.give_back(s, state.common)


def _lent(workshop: Workshop) -> dict[int, set[str]]:
    """Return what sockets are lent for a port that they share."""
    return ports.lent_options(
        {
            number: ports.Bound(state.address, state.common)
            for number, state in workshop.parts("udp").items()
            if state.address is not None
        }
    )


def release(state: State, s: socket.socket, load: Loader, forge: Forge) -> None:
    """Have the datagrams come again: packets pass."""
    for datagram in state.waiting:
        if state.address is not None:
            target = inet.Address(_deliverable(s, datagram.target), state.address.port)
            data = load(datagram.first_page, datagram.length) if datagram.length else b""
            forge.datagram(datagram.sender, target, data)
    if _has_strangers(state):
        _connect(state, s)


def is_late(state: State) -> bool:
    """Is there something for release() to do?"""
    return bool(state.waiting)


def _holds_something(s: socket.socket) -> bool:
    """Is there memory that *s* has not sent? No call shows what is in it: SIOCOUTQ of udp(7)."""
    (count,) = struct.unpack("i", fcntl.ioctl(s, termios.TIOCOUTQ, bytes(4)))
    return bool(count)


def _has_strangers(state: State) -> bool:
    """Does something wait that is not from the peer? It came before the socket was connected."""
    return any(datagram.sender != state.peer for datagram in state.waiting)


def _connect(state: State, s: socket.socket) -> None:
    if state.peer is not None:
        s.connect(inet.sockaddr(s, state.peer))
        if state.shutdown:
            s.shutdown(state.shutdown - 1)  # SHUT_RD, SHUT_WR, SHUT_RDWR


def _deliverable(s: socket.socket, target: str) -> str:
    """Return an address to which loopback delivers: not that of a group, nor of everybody."""
    host = ipaddress.ip_address(target)
    if host.is_multicast or host == ipaddress.IPv4Address("255.255.255.255"):
        return _NOBODY[s.family]
    return target


def _waiting(s: socket.socket, dump: Dump) -> Iterator[Datagram]:
    """Return all that waits, without taking it."""
    if not sockets.is_readable(s):
        return
    with _seeing_all(s), contextlib.suppress(BlockingIOError):
        while True:
            data, control, _, sender = s.recvmsg(
                _LARGEST, 512, socket.MSG_PEEK | socket.MSG_DONTWAIT
            )
            yield Datagram(
                sender=inet.address(s, sender),
                target=_target(control) or _NOBODY[s.family],
                first_page=dump.store(data) if data else 0,
                length=len(data),
            )


@contextlib.contextmanager
def _seeing_all(s: socket.socket) -> Iterator[None]:
    """Have each look see the next datagram, and what address it was sent to."""
    options = [
        (socket.SOL_SOCKET, _SO_PEEK_OFF, 0),
        (socket.IPPROTO_IP, _IP_RECVORIGDSTADDR, 1),
    ]
    if s.family == socket.AF_INET6:
        options.append((socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1))
    before = [s.getsockopt(level, option) for level, option, _ in options]
    for level, option, value in options:
        s.setsockopt(level, option, value)
    try:
        yield
    finally:
        for (level, option, _), value in zip(options, before, strict=True):
            s.setsockopt(level, option, value)


def _target(control: list[tuple[int, int, Any]]) -> str:
    """Return the address that IP_ORIGDSTADDR or IPV6_ORIGDSTADDR tells; or ""."""
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IP, _IP_RECVORIGDSTADDR):
            return socket.inet_ntoa(data[4:8])
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR):
            return socket.inet_ntop(socket.AF_INET6, data[8:24])
    return ""
