"""Unix sockets inside the pod: unix(7).

A connection is an object that makes both ends at once: by socketpair(2) where neither has a name,
else through a listener of that name, the pod's own or one for the moment. What waits in the
queues is sent again, then the ends are shut down as they were. SO_PEERCRED shows the user and
group that it showed; the process is not known there, for none exists yet.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Final

import msgspec

from ckpt.kinds import sockdiag, sockets, unixname, unixqueue
from ckpt.kinds.acting import acting_as
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.kinds.unixname import Name
from ckpt.kinds.unixqueue import Message
from ckpt.model import OpenFile

_TYPES: Final = {
    "stream": socket.SOCK_STREAM,
    "dgram": socket.SOCK_DGRAM,
    "seqpacket": socket.SOCK_SEQPACKET,
}
_OUTSIDE: Final = "it is connected to a socket outside of the pod"
_RETRY: Final = "try again in a moment"
_NOBODY: Final = 0xFFFFFFFF
# Bits of sk_shutdown: include/net/sock.h.
_SHUTDOWN: Final = {1: socket.SHUT_RD, 2: socket.SHUT_WR, 3: socket.SHUT_RDWR}


class State(msgspec.Struct, frozen=True):
    """A unix socket.

    Attributes:
        type: "stream", "dgram" or "seqpacket".
        name: its own.
        connection: the object that makes it, of a connected one whose other end is in the pod.
        peer: OpenFile.id of what a datagram socket sends to, where that does not send back.
        orphan: was the other end closed?
        backlog: of a listener, as given to listen(2); None of any other.
        waiting: at a listener: OpenFile.id of the clients that wait to be accepted, in order.
        queue: what has been received and not read.
        shutdown: 1: it will receive no more; 2: it will send no more; 3: both.
        user, group: as SO_PEERCRED shows; None where that has none.
        common: options and owner.
    """

    type: str
    name: Name | None
    connection: int | None
    peer: int | None
    orphan: bool
    backlog: int | None
    waiting: list[int]
    queue: list[Message]
    shutdown: int
    user: int | None
    group: int | None
    common: sockets.Common


class ObjectState(msgspec.Struct, frozen=True):
    """A connection.

    Attributes:
        client, server: OpenFile.id of the ends; of a socket pair, in any order.
        listener: OpenFile.id of the listener that the server end came from, if it is still there.
    """

    client: int
    server: int
    listener: int | None


class _Queue(msgspec.Struct):
    """What waits at a socket, or why that cannot be carried over."""

    messages: list[Message] = msgspec.field(default_factory=list)
    reason: str = ""


# --- collecting ----------------------------------------------------------------------------


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return sockets.family(source)[0] == socket.AF_UNIX


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    info = _known(dump).get(source.stat.st_ino)
    if info is None:
        dump.refuse(source, "it belongs to another network namespace")
        return None
    peer = _peers(dump).get(info.peer) if info.peer else None
    if info.peer and peer is None:
        if not unixqueue.may_hold_more(dump):
            dump.refuse(source, _OUTSIDE)
        return None
    with sockets.borrowed(source.local_fd) as s:
        reason = _unportable(s, info, dump)
        if reason:
            dump.refuse(source, reason, _RETRY)
            return None
        waiting = _queue(source, dump)
        if waiting.reason:
            dump.refuse(source, waiting.reason, _RETRY)
            return None
        return _state(s, source, info, [_addressed(m, dump) for m in waiting.messages], dump)


def _state(
    s: socket.socket,
    source: Source,
    info: sockdiag.UnixSocket,
    queue: list[Message],
    dump: Dump,
) -> State:
    peer = _peers(dump).get(info.peer) if info.peer else None
    # One that sends to itself has no other end, though what it is connected to sends back.
    to_itself = info.peer == info.inode
    mutual = peer and not to_itself and _known(dump)[peer.stat.st_ino].peer == info.inode
    credentials = s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    user, group = (int.from_bytes(credentials[at : at + 4], "little") for at in (4, 8))
    waiting = [_peers(dump)[inode].id for inode in info.waiting]
    return State(
        type=next(name for name, number in _TYPES.items() if number == s.type),
        name=unixname.collect(source, dump),
        connection=_connection(source, peer, dump) if peer and mutual else None,
        peer=peer.id if peer and not mutual else None,
        orphan=info.peer == 0 and info.inode not in _clients(dump),
        backlog=info.backlog if info.listening else None,
        waiting=waiting,
        queue=queue,
        shutdown=info.shutdown,
        user=None if user == _NOBODY else user,
        group=None if user == _NOBODY else group,
        common=sockets.collect_common(source, sockets.TABLES[socket.AF_UNIX]),
    )


def _known(dump: Dump) -> dict[int, sockdiag.UnixSocket]:
    return dump.once("unix", lambda: sockdiag.unix_sockets(dump.init_host_pid))


def _peers(dump: Dump) -> dict[int, Source]:
    """Return the pod's unix sockets, by inode."""

    def find() -> dict[int, Source]:
        return {s.stat.st_ino: s for s in dump.sources() if s.fd >= 0 and recognises(s, dump)}

    return dump.once("unix sockets", find)


def _addresses(dump: Dump) -> dict[bytes, int]:
    """Return who can be meant as the sender of a datagram: OpenFile.id by address."""

    def find() -> dict[bytes, int]:
        found = {}
        for source in _peers(dump).values():
            with sockets.borrowed(source.local_fd) as s:
                if s.type == socket.SOCK_DGRAM and (address := os.fsencode(s.getsockname())):
                    found[address] = source.id
        return found

    return dump.once("unix addresses", find)


def _listeners(dump: Dump) -> dict[Name | None, Source]:
    """Return the pod's listeners by their names."""

    def find() -> dict[Name | None, Source]:
        peers = _peers(dump)
        inodes = [i.inode for i in _known(dump).values() if i.listening and i.inode in peers]
        return {unixname.collect(peers[inode], dump): peers[inode] for inode in inodes}

    return dump.once("unix listeners", find)


def _clients(dump: Dump) -> set[int]:
    """Return the inodes of those who wait to be accepted."""

    def find() -> set[int]:
        return {inode for info in _known(dump).values() for inode in info.waiting}

    return dump.once("unix clients", find)


def _unportable(s: socket.socket, info: sockdiag.UnixSocket, dump: Dump) -> str:
    """Return why the socket cannot be carried over as it is now, or ""."""
    if any(inode not in _peers(dump) for inode in info.waiting):
        return "a connection waits to be accepted whose client is gone, or outside of the pod"
    if info.peer == 0 and not info.shutdown and unixqueue.unread_by_peer(s):
        return "it has sent data on a connection that was not yet accepted"
    return ""


def _connection(source: Source, peer: Source, dump: Dump) -> int:
    inodes = sorted((source.stat.st_ino, peer.stat.st_ino))
    number, new = dump.object_id("unix", tuple(inodes))
    if new:
        client, server, listener = _roles(source, peer, dump)
        dump.set_object(
            number, ObjectState(client.id, server.id, listener.id if listener else None)
        )
    return number


def _roles(one: Source, other: Source, dump: Dump) -> tuple[Source, Source, Source | None]:
    """Return client, server and the listener between them.

    The server end has the listener's name. If both ends have one, the newer end is the server,
    for accept(2) made it: sockets are numbered as they are made.
    """
    older, newer = sorted((one, other), key=lambda source: source.stat.st_ino)
    names = {source.id: unixname.collect(source, dump) for source in (older, newer)}
    if names[older.id] is not None and names[newer.id] is None:
        older, newer = newer, older
    name = names[newer.id]
    if name is None:
        return older, newer, None
    return older, newer, _listeners(dump).get(name)


def carried(source: Source, dump: Dump) -> Iterator[int]:
    """See protocol.Carrying. What waits is looked at here, and only here."""
    info = _known(dump).get(source.stat.st_ino)
    if info is None or info.listening or dump.looking_only:
        return
    queue = _queue(source, dump)
    try:
        with sockets.borrowed(source.local_fd) as s:
            for message, fds in unixqueue.collect(s, dump):
                files = []
                for fd in fds:
                    yield os.dup(fd)
                    files.append(dump.own_id(fd))
                    os.close(fd)
                queue.messages.append(msgspec.structs.replace(message, files=files))
    except unixqueue.NotPortable as e:
        queue.reason = str(e)


def _queue(source: Source, dump: Dump) -> _Queue:
    return dump.once(f"unix queue {source.id}", _Queue)


def _addressed(message: Message, dump: Dump) -> Message:
    """Return *message* with the socket that has its sender's address, if there is one."""
    known = _addresses(dump).get(message.address)
    if known is None:
        return message
    return msgspec.structs.replace(message, sender=known, address=b"")


# --- rebuilding ----------------------------------------------------------------------------


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    if state.connection is not None:
        fd: int = workshop.object(state.connection)[file.id]
        return sockets.set_status(socket.socket(fileno=fd), file)
    if state.orphan:
        return sockets.set_status(_orphan(state, workshop), file)
    s = sockets.make(socket.AF_UNIX, _TYPES[state.type], 0, state.common)
    unixname.bind(s, state.name, workshop)
    if state.backlog is not None:
        with _acting_as(state):
            s.listen(state.backlog)
    return sockets.set_status(s, file)


def rebuild_object(state: ObjectState, workshop: Workshop) -> dict[int, int]:
    """Make both ends of a connection; return their descriptors by OpenFile.id, client first."""
    client, server = (workshop.part(end, "unix") for end in (state.client, state.server))
    listener = None if state.listener is None else workshop.file(state.listener)
    ends = _connect(client, server, listener, workshop)
    for s, end in zip(ends, (client, server), strict=True):
        sockets.adopt(s, end.common)
    return {state.client: ends[0].detach(), state.server: ends[1].detach()}


def _fill(ends: dict[int, int], workshop: Workshop) -> None:
    """Send what waits at both ends of a connection, which may be any open file; shut them down."""
    if not ends:
        return
    client, server = ends
    with (
        sockets.borrowed(workshop.file(client)) as one,
        sockets.borrowed(workshop.file(server)) as other,
    ):
        pairs = ((one, other, client), (other, one, server))
        for _, sender, receiver in pairs:
            for message in workshop.part(receiver, "unix").queue:
                unixqueue.send(message, sender, b"", workshop)
        for s, _, end in pairs:
            _shut_down(s, workshop.part(end, "unix"))
    ends.clear()  # the other end comes here, too


def complete(state: State, fd: int, workshop: Workshop) -> None:
    """See protocol.Completing: clients connect, datagrams are sent."""
    if state.connection is not None:
        _fill(workshop.object(state.connection), workshop)
    if state.connection is not None or state.orphan:
        return
    with sockets.borrowed(fd) as s:
        for client in state.waiting:
            with (
                sockets.borrowed(workshop.file(client)) as c,
                unixname.reach(s, workshop) as address,
                _acting_as(workshop.part(client, "unix")),
            ):
                c.connect(address)
        for message in state.queue:
            with _sender(message, workshop) as sender, unixname.reach(s, workshop) as address:
                unixqueue.send(message, sender, address, workshop)
        if state.peer is not None:
            with (
                sockets.borrowed(workshop.file(state.peer)) as peer,
                unixname.reach(peer, workshop) as address,
            ):
                s.connect(address)
        _shut_down(s, state)


def _connect(
    client: State, server: State, listener: int | None, workshop: Workshop
) -> tuple[socket.socket, socket.socket]:
    """Return a connected pair: the client's end, the server's."""
    kind = _TYPES[client.type] | socket.SOCK_CLOEXEC
    if server.name is None or client.type == "dgram":
        with _acting_as(client):
            ends = socket.socketpair(socket.AF_UNIX, kind)
        for s, end in zip(ends, (client, server), strict=True):
            unixname.bind(s, end.name, workshop)
        return ends
    with contextlib.ExitStack() as stack:
        if listener is None:
            door = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            unixname.bind(door, server.name, workshop)
            with _acting_as(client):
                door.listen(1)
        else:
            door = stack.enter_context(sockets.borrowed(listener))
        s = socket.socket(socket.AF_UNIX, kind)
        unixname.bind(s, client.name, workshop)
        with unixname.reach(door, workshop) as address, _acting_as(server):
            s.connect(address)
        return s, door.accept()[0]


def _orphan(state: State, workshop: Workshop) -> socket.socket:
    """Return a connected socket whose other end has sent its last and is closed."""
    if state.name is not None and state.type != "dgram":
        other, s = _connect(msgspec.structs.replace(state, name=None), state, None, workshop)
    else:
        s, other = _connect(state, msgspec.structs.replace(state, name=None), None, workshop)
    with other:
        for message in state.queue:
            unixqueue.send(message, other, b"", workshop)
    sockets.adopt(s, state.common)
    _shut_down(s, state)
    return s


def _shut_down(s: socket.socket, state: State) -> None:
    if state.shutdown:
        s.shutdown(_SHUTDOWN[state.shutdown])


@contextlib.contextmanager
def _sender(message: Message, workshop: Workshop) -> Iterator[socket.socket]:
    """Give a socket with the address that the message came from."""
    if message.sender is not None:
        with sockets.borrowed(workshop.file(message.sender)) as s:
            yield s
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        if message.address.startswith(b"\0"):
            s.bind(message.address)
        yield s


def _acting_as(state: State) -> contextlib.AbstractContextManager[None]:
    """Be the user whom SO_PEERCRED shows at *state*."""
    return acting_as(state.user or 0, state.group or 0)
