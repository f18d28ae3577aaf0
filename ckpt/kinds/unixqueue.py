"""What waits in the receive queue of a unix socket: read without taking it, and sent again."""

import array
import contextlib
import errno
import fcntl
import mmap
import os
import re
import socket
import termios
from collections.abc import Iterator
from typing import Any

import msgspec

from ckpt.kinds import sockets
from ckpt.kinds.protocol import Dump, Workshop

_SO_PEEK_OFF = 42
_SO_BUF_LOCK = 72
_SO_SNDBUFFORCE = 32
_BUFFER_BYTES = 4 << 20
_ROOM_BYTES = 64 << 20
_FEW_RIGHTS = 4 * 253  # SCM_MAX_FD of them (unix(7))
_TIMES = (29, 35, 37)  # SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING: when it came is not kept

_Control = list[tuple[int, int, bytes]]


class Message(msgspec.Struct, frozen=True):
    """A message, or of a stream a piece of any length.

    Attributes:
        length: bytes.
        first_page: in the archive.
        sender: OpenFile.id of the socket of the pod that has the sender's address.
        address: the sender's address where no socket has it any more; or empty.
        files: OpenFile.id of the descriptors that come with it (SCM_RIGHTS).
        credentials: the sender's process in the pod, 0 if unknown, user and group
            (SCM_CREDENTIALS); None where the receiver does not ask for them.
    """

    length: int
    first_page: int
    sender: int | None = None
    address: bytes = b""
    files: list[int] = []
    credentials: tuple[int, int, int] | None = None


class NotPortable(Exception):  # noqa: N818 (it is a finding, not a fault)
    """The queue holds something that cannot be sent again; the text says what."""


def may_hold_more(dump: Dump) -> bool:
    """May messages hold files that are not known yet, as long as the pod runs?

    Source: net/unix/af_unix.c, unix_show_fdinfo().
    """

    def any_sent() -> bool:
        return any(re.search(r"^scm_fds: *[1-9]", s.fdinfo, re.MULTILINE) for s in dump.sources())

    return dump.looking_only and dump.once("files in messages", any_sent)


def collect(s: socket.socket, dump: Dump) -> Iterator[tuple[Message, list[int]]]:
    """Return what waits at *s*, without senders and files, and the descriptors that come with it.

    To be called once: an empty datagram that was looked at does not show itself again
    (net/core/datagram.c, __skb_try_recv_from_queue()). The caller owns the descriptors.

    Raises:
        NotPortable: too long a message, or something unknown comes with it.
    """
    if not sockets.is_readable(s):
        return
    buffer = bytearray(_BUFFER_BYTES)
    with _peek_offset(s), contextlib.suppress(BlockingIOError):
        while True:
            at = s.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
            message, fds = _peek(s, buffer, dump)
            if message is None:
                return
            next_at = s.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
            before = _bytes_before_files(s, at, message.length) if fds else 0
            s.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, at if before else next_at)
            if before:
                _close(fds)
                message, fds = _peek(s, memoryview(buffer)[:before], dump)
                _close(fds)  # a look shows those of the next message even where it ends before it
                fds = []
            if message is not None:
                yield message, fds


def unread_by_peer(s: socket.socket) -> int:
    """Return how much memory of *s* waits to be read by its peer: SIOCOUTQ of unix(7)."""
    count = array.array("i", [0])
    fcntl.ioctl(s.fileno(), termios.TIOCOUTQ, count)
    return count[0]


def send(message: Message, sender: socket.socket, to: bytes | str, workshop: Workshop) -> None:
    """Send *message* again; *to* is empty if *sender* is connected to the receiver."""
    data = memoryview(workshop.load(message.first_page, message.length) if message.length else b"")
    extra: _Control = []
    if message.files:
        files = array.array("i", [workshop.file(file) for file in message.files])
        extra.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, files.tobytes()))
    if message.credentials is not None:
        ids = array.array("i", [os.getpid(), *message.credentials[1:]])
        extra.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ids.tobytes()))
    while True:
        try:
            done = _send(sender, data, to, extra)
        except BlockingIOError:
            done = _send_with_room(sender, data, to, extra)
        data = data[done:]
        extra = [item for item in extra if item[1] != socket.SCM_RIGHTS]
        if not data:
            return


def _waiting_bytes(s: socket.socket) -> int:
    """Return how much waits; of datagrams, the first one's length. Source: unix(7), SIOCINQ."""
    count = array.array("i", [0])
    fcntl.ioctl(s.fileno(), termios.FIONREAD, count)
    return count[0]


def _send(s: socket.socket, data: memoryview, to: bytes | str, extra: _Control) -> int:
    return s.sendmsg([data], extra, socket.MSG_DONTWAIT, *([to] if to else []))


def _send_with_room(s: socket.socket, data: memoryview, to: bytes | str, extra: _Control) -> int:
    """Send more than the send buffer allows: the pieces may have been smaller, or the limit."""
    size = s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    lock = s.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
    s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM_BYTES)
    try:
        return _send(s, data, to, extra)
    finally:
        s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size // 2)
        s.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, lock)


def _peek(
    s: socket.socket, buffer: bytearray | memoryview, dump: Dump
) -> tuple[Message | None, list[int]]:
    """Return the next message, None at the end of the stream, and descriptors."""
    length, control, status, sender = _look(s, buffer)
    fds = _descriptors(control)
    try:
        if s.type == socket.SOCK_DGRAM or length:
            if status & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise NotPortable(f"a message of more than {_BUFFER_BYTES} bytes waits in it")
            credentials = _credentials(control, dump)
            first = dump.store(memoryview(buffer)[:length]) if length else 0
            address = os.fsencode(sender or b"")
            return Message(length, first, None, address, [], credentials), fds
    except BaseException:
        _close(fds)
        raise
    return None, fds


def _look(s: socket.socket, buffer: bytearray | memoryview) -> tuple[int, _Control, int, Any]:
    return s.recvmsg_into(
        [buffer],
        socket.CMSG_SPACE(_FEW_RIGHTS) + socket.CMSG_SPACE(64),
        socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
    )


@contextlib.contextmanager
def _peek_offset(s: socket.socket) -> Iterator[None]:
    """Have looks go on from one message to the next, from the first on.

    Source: socket(7), SO_PEEK_OFF.
    """
    old = s.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    s.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    try:
        yield
    finally:
        s.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, old)


def _bytes_before_files(s: socket.socket, at: int, length: int) -> int:
    """Return how much of what a look from offset *at* showed was sent before its descriptors.

    A look at a stream ends behind a message with descriptors, but may begin before it. So look
    again, into a buffer of which the last byte cannot be written to: then it ends before that
    message. Source: net/unix/af_unix.c, unix_stream_read_generic().
    """
    if s.type != socket.SOCK_STREAM:
        return 0
    room = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.memfd_create("", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, room + mmap.PAGESIZE)
        with (
            mmap.mmap(fd, room + mmap.PAGESIZE) as memory,
            memoryview(memory) as view,
            view[room + 1 - length : room + 1] as most,
        ):
            os.ftruncate(fd, room)
            s.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, at)
            shown, control, *_ = _look(s, most)
    except OSError as e:
        if e.errno != errno.EFAULT:
            raise
        return 0
    finally:
        os.close(fd)
    _close(_descriptors(control))
    return shown


def _descriptors(control: _Control) -> list[int]:
    return [
        fd
        for _, kind, data in control
        if kind == socket.SCM_RIGHTS
        for fd in array.array("i", data[: len(data) - len(data) % 4])
    ]


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _credentials(control: _Control, dump: Dump) -> tuple[int, int, int] | None:
    """Return the sender's process in the pod, user and group.

    Raises:
        NotPortable: something else comes with the message.
    """
    found = None
    for _, kind, data in control:
        if kind == socket.SCM_CREDENTIALS:
            pid, user, group = array.array("i", data)
            found = (dump.pid_in_pod(pid) or 0, user, group)
        elif kind != socket.SCM_RIGHTS and kind not in _TIMES:
            raise NotPortable(f"a message with control data of type {kind} waits in it")
    return found
