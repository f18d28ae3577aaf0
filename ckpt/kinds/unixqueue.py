"""What waits in the receive queue of a unix socket: read without taking it, and sent again."""

import array
import contextlib
import fcntl
import os
import socket
import termios
from collections.abc import Iterator, Mapping

import msgspec

from ckpt.kinds import sockets
from ckpt.kinds.protocol import Dump, Workshop

_SO_PEEK_OFF = 42
_SO_BUF_LOCK = 72
_SO_SNDBUFFORCE = 32
_BUFFER_BYTES = 4 << 20
_ROOM_BYTES = 64 << 20
_FEW_RIGHTS = 4 * 253  # SCM_MAX_FD of them (unix(7))


class Message(msgspec.Struct, frozen=True):
    """A message, or of a stream a piece of any length.

    Attributes:
        length: bytes.
        first_page: in the archive.
        sender: OpenFile.id of the socket of the pod that has the sender's address.
        address: the sender's address where no socket has it any more; or empty.
    """

    length: int
    first_page: int
    sender: int | None = None
    address: bytes = b""


class NotPortable(Exception):  # noqa: N818 (it is a finding, not a fault)
    """The queue holds something that cannot be sent again; the text says what."""


def collect(s: socket.socket, senders: Mapping[bytes, int], dump: Dump) -> list[Message]:
    """Return what waits at *s*; *senders* are the addresses that sockets of the pod have.

    Raises:
        NotPortable: descriptors, or credentials, or too long a message.
    """
    if dump.looking_only or not sockets.is_readable(s):
        return []
    buffer = bytearray(_BUFFER_BYTES)
    if s.type == socket.SOCK_STREAM and _waiting_bytes(s) <= len(buffer):
        # One look shows it all, unless something unportable is in between.
        message = _peek(s, buffer, senders, dump)
        if (message.length if message else 0) == _waiting_bytes(s):
            return [message] if message else []
    return list(_peek_all(s, buffer, senders, dump))


def _peek_all(
    s: socket.socket, buffer: bytearray, senders: Mapping[bytes, int], dump: Dump
) -> Iterator[Message]:
    """Return every message, with a peek offset that goes on from one to the next.

    Source: socket(7), SO_PEEK_OFF.
    """
    old = s.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    s.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    try:
        with contextlib.suppress(BlockingIOError):
            while (message := _peek(s, buffer, senders, dump)) is not None:
                yield message
    finally:
        s.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, old)


def is_empty(s: socket.socket) -> bool:
    """Does nothing wait at *s*? An empty datagram counts as nothing."""
    return not _waiting_bytes(s)


def unread_by_peer(s: socket.socket) -> int:
    """Return how much memory of *s* waits to be read by its peer: SIOCOUTQ of unix(7)."""
    count = array.array("i", [0])
    fcntl.ioctl(s.fileno(), termios.TIOCOUTQ, count)
    return count[0]


def send(message: Message, sender: socket.socket, to: bytes | str, workshop: Workshop) -> None:
    """Send *message* again; *to* is empty if *sender* is connected to the receiver."""
    data = memoryview(workshop.load(message.first_page, message.length) if message.length else b"")
    while True:
        try:
            done = _send(sender, data, to)
        except BlockingIOError:
            done = _send_with_room(sender, data, to)
        data = data[done:]
        if not data:
            return


def _waiting_bytes(s: socket.socket) -> int:
    """Return how much waits; of datagrams, the first one's length. Source: unix(7), SIOCINQ."""
    count = array.array("i", [0])
    fcntl.ioctl(s.fileno(), termios.FIONREAD, count)
    return count[0]


def _send(s: socket.socket, data: memoryview, to: bytes | str) -> int:
    if to:
        return s.sendto(data, socket.MSG_DONTWAIT, to)
    return s.send(data, socket.MSG_DONTWAIT)


def _send_with_room(s: socket.socket, data: memoryview, to: bytes | str) -> int:
    """Send more than the send buffer allows: the pieces may have been smaller, or the limit."""
    size = s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    lock = s.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
    s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM_BYTES)
    try:
        return _send(s, data, to)
    finally:
        s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size // 2)
        s.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, lock)


def _peek(
    s: socket.socket, buffer: bytearray, senders: Mapping[bytes, int], dump: Dump
) -> Message | None:
    length, control, status, sender = s.recvmsg_into(
        [buffer],
        socket.CMSG_SPACE(_FEW_RIGHTS) + socket.CMSG_SPACE(64),
        socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
    )
    _check_control(control)
    if status & socket.MSG_TRUNC:
        raise NotPortable(f"a message of more than {_BUFFER_BYTES} bytes waits in it")
    if not length and s.type != socket.SOCK_DGRAM:
        return None  # the end of the stream
    first = dump.store(memoryview(buffer)[:length]) if length else 0
    address = os.fsencode(sender or b"")
    known = senders.get(address)
    return Message(length, first, known, b"" if known is not None else address)


def _check_control(control: list[tuple[int, int, bytes]]) -> None:
    """Close descriptors that came along with a message, then say that they did."""
    for _, kind, data in control:
        if kind == socket.SCM_RIGHTS:
            for fd in array.array("i", data[: len(data) - len(data) % 4]):
                os.close(fd)
    if control:
        raise NotPortable("a message with descriptors or credentials waits in it")
