"""What two hosts say to each other: one TLS 1.3 connection, messages and streams of bytes on it.

A message is four bytes of length, big-endian, and a MessagePack map whose `type` names it. A stream
is a sequence of pieces, each with such a length; an empty one ends it. Both ends are plain blocking
processes: they fork and trace others, which no process with an event loop or a second thread may.
"""

import hashlib
import os
import socket
import ssl
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, Self, TypeVar

import msgspec

from autopod import hosts
from autopod.errors import Refused
from autopod.hosts import Host
from ckpt.archive import keys, schema
from ckpt.model import Clocks
from launcher.places import Places

VERSION: Final = 6
PIECE: Final = 1 << 20
_MAX_MESSAGE: Final = 1 << 22
_LENGTH: Final = struct.Struct(">I")
_SILENCE_S: Final = 300.0
"""Longer than any step of the other side takes without a word: then the link counts as cut."""
_DEAD_MS: Final = 20_000
"""So long a host may be out of reach; tcp(7), TCP_USER_TIMEOUT."""


class LinkCut(Exception):  # noqa: N818 (what happened)
    """The connection ended, or never came about."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=True):
    """What all messages are."""


class Join(Message, frozen=True):
    """A host asks to be known; *secret* is that of an invitation."""

    secret: str
    name: str
    host: Host


class Joined(Message, frozen=True):
    """It is known now, by the host *name*."""

    name: str
    host: Host


class Offer(Message, frozen=True):
    """A pod would come.

    Attributes:
        session: 32 hexadecimal digits, for this attempt.
        pod: its name.
        machine: what of the machine matters to its programs.
        config: its configuration file.
        base: its lower layers, topmost first.
        layers: ids of its sealed layers, bottommost first.
        size: bytes of memory and files that may come, roughly.
        trial: nothing shall come: only the answer is wanted.
        owned: its host asks its fleet before it makes a pod.
        overlay: its host is on an overlay, and connections would end with that.
    """

    version: int
    session: str
    pod: str
    machine: schema.Host
    config: bytes
    base: list[schema.Base]
    layers: list[str]
    size: int
    trial: bool = False
    owned: bool = False
    overlay: bool = False


class Accepted(Message, frozen=True):
    """It may come; *layers* are those of its sealed layers that are here already."""

    layers: list[str]


class Layer(Message, frozen=True):
    """A sealed layer follows, a stream: its OCI tar, compressed with zstd."""

    id: str


class Archive(Message, frozen=True):
    """The next part of the archive follows, a stream. It may still be being written.

    Attributes:
        pages: it is nothing but pages, and in the first part what is before them.
    """

    pages: bool


class Still(Message, frozen=True):
    """The pod stands still. Those of its sealed layers follow that are not there yet.

    Attributes:
        layers: ids of all of them, bottommost first.
        clocks: what its clocks are.
    """

    layers: list[str]
    clocks: Clocks


class Head(Message, frozen=True):
    """That was the archive; it begins with *data*, whatever its first part had there."""

    data: bytes


class Done(Message, frozen=True):
    """What was sent has been taken."""


class Ready(Message, frozen=True):
    """All is here that can be before the pod stands still: let the archive come."""


class Prepared(Message, frozen=True):
    """The pod stands, and waits for Release."""


class Release(Message, frozen=True):
    """The pod does not run at its former host any more: let it go.

    Attributes:
        held: what has come for it there since it stood still (launcher.held).
    """

    held: list[bytes] = []


class Living(Message, frozen=True):
    """The pod runs here."""

    notes: list[str] = []


class Ask(Message, frozen=True):
    """What has become of this session? The answer, Living or Gone, is final."""

    session: str


class Gone(Message, frozen=True):
    """The pod of the session has not been let go here and never will be."""


class Failed(Message, frozen=True):
    """The other side cannot go on: pairs of message and hint."""

    findings: list[tuple[str, str]]


class PeerFailed(Exception):  # noqa: N818 (what happened)
    """The other host said why it cannot go on. *findings*: pairs of message and hint."""

    def __init__(self, host: str, failed: Failed) -> None:
        self.findings = [(f"host {host}: {text}", hint) for text, hint in failed.findings]
        super().__init__("; ".join(text for text, _ in self.findings))


_Any = (
    Join | Joined | Offer | Accepted | Layer | Archive | Still | Head | Done | Ready | Prepared
    | Release | Living | Ask | Gone | Failed
)  # fmt: skip
_M = TypeVar("_M", bound=Message)


class Link:
    """A connection to another host. A context manager.

    Attributes:
        peer: the other host's name; "" for one that is not known yet.
        fingerprint: of its certificate; "" if it has shown none.
    """

    def __init__(self, connection: ssl.SSLSocket, peer: str, fingerprint: str) -> None:
        self._connection = connection
        self.peer, self.fingerprint = peer, fingerprint

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            LinkCut: the connection has ended.
        """
        self._send(msgspec.msgpack.encode(message))

    def receive(self, *kinds: type[_M]) -> _M:
        """Return the next message, which must be one of *kinds*.

        Raises:
            LinkCut: the connection has ended.
            PeerFailed: the other side cannot go on.
            Refused: it said something else, or nothing that can be understood.
        """
        data = self._receive(_MAX_MESSAGE)
        try:
            message = msgspec.msgpack.decode(data, type=_Any)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as e:
            raise Refused(f"host {self.peer} sent what is no message: {e}") from e
        if isinstance(message, Failed):
            raise PeerFailed(self.peer, message)
        if not isinstance(message, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise Refused(f"host {self.peer} sent {type(message).__name__}, not {expected}")
        return message

    def refuse(self, findings: list[tuple[str, str]]) -> None:
        """Say that it cannot go on here, and hear the other side out.

        Data that nobody has read would make the kernel reset the connection, before the other side
        has read why (RFC 1122, section 4.2.2.13).
        """
        self.send(Failed(findings))
        with suppress(OSError):
            while self._connection.recv(PIECE):
                pass

    def send_stream(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Send a stream of bytes.

        Raises:
            LinkCut: the connection has ended.
        """
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), PIECE):
                self._send(view[start : start + PIECE])
        self._send(b"")

    def receive_stream(self) -> Iterator[bytes]:
        """Yield a stream of bytes, to its end.

        Raises:
            LinkCut: the connection has ended.
        """
        while piece := self._receive(PIECE):
            yield piece

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._connection.sendall(_LENGTH.pack(len(data)))
            self._connection.sendall(data)
        except OSError as e:
            raise _cut(self.peer, e) from e

    def _receive(self, limit: int) -> bytes:
        (size,) = _LENGTH.unpack(self._receive_exactly(_LENGTH.size))
        if size > limit:
            raise Refused(f"host {self.peer} sent {size} bytes where {limit} are allowed")
        return self._receive_exactly(size)

    def _receive_exactly(self, size: int) -> bytes:
        data, done = bytearray(size), 0
        with memoryview(data) as view:
            while done < size:
                try:
                    got = self._connection.recv_into(view[done:])
                except OSError as e:
                    raise _cut(self.peer, e) from e
                if not got:
                    raise _cut(self.peer, ConnectionResetError())
                done += got
        return bytes(data)


def connect(places: Places, name: str) -> Link:
    """Connect to the service of host *name*; each proves to the other that it has its key.

    Raises:
        Refused: the host is not known here.
        LinkCut: it does not answer, or is not the one that is known.
    """
    host = hosts.load(places, name)
    context = _context(places, ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=host.certificate)
    return Link(_open(name, host.address, context), name, host.fingerprint)


def connect_unknown(address: str, fingerprint: str) -> Link:
    """Connect to a host that is known by the fingerprint of its certificate only.

    Raises:
        LinkCut: it does not answer, or is not that host.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # compared below
    connection = _open(address, address, context)
    shown = _fingerprint(connection)
    if shown != fingerprint:
        connection.close()
        raise LinkCut(f"{address} is not the host that has made the invitation")
    return Link(connection, address, shown)


def answer(places: Places, plain: socket.socket) -> Link:
    """Do the server's part of the handshake on an accepted connection.

    A host that shows no certificate is nobody: it can ask to join, with an invitation.

    Raises:
        LinkCut: the other side shows a certificate that is not known, or goes away.
    """
    context = _context(places, ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    names = {host.fingerprint: name for name, host in hosts.known(places).items()}
    for host in hosts.known(places).values():
        context.load_verify_locations(cadata=host.certificate)
    try:
        _tune(plain)
        connection = context.wrap_socket(plain, server_side=True)
    except OSError as e:
        raise _cut("the other host", e) from e
    shown = _fingerprint(connection)
    return Link(connection, names.get(shown, ""), shown)


def _context(places: Places, protocol: int) -> ssl.SSLContext:
    hosts.load_own(places)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a host is known by its key, whatever it is called
    context.load_cert_chain(
        os.fspath(hosts.own_certificate(places)), os.fspath(places.keys() / keys.PRIVATE)
    )
    return context


def _open(name: str, address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    try:
        plain = socket.create_connection(hosts.split(address), _DEAD_MS / 1000)
        _tune(plain)
        return context.wrap_socket(plain)
    except OSError as e:
        raise _cut(name if name == address else f"{name} at {address}", e) from e


def _tune(connection: socket.socket) -> None:
    """Send at once; notice soon when the other host is out of reach."""
    connection.settimeout(_SILENCE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, 5),
        (socket.TCP_KEEPINTVL, 5),
        (socket.TCP_USER_TIMEOUT, _DEAD_MS),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _fingerprint(connection: ssl.SSLSocket) -> str:
    certificate = connection.getpeercert(binary_form=True)
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def _cut(peer: str, error: OSError) -> LinkCut:
    reason = error.strerror or str(error)
    if isinstance(error, TimeoutError):
        reason = "it says nothing"
    elif isinstance(error, ssl.SSLCertVerificationError):
        reason = "it shows another certificate than the one that is known"
    elif isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
        reason = "it ended the connection"
    refused = isinstance(error, ConnectionRefusedError)
    return LinkCut(f"host {peer}: {reason}", "does autopod statusd run there?" if refused else "")
