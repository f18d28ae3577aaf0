"""TCP sockets: tcp(7). Listening, bound, or fresh; established ones are refused for now.

Connections that wait to be accepted do not survive: their peers see a reset, as they do when a
server is restarted.
"""

import errno
import socket
from typing import Final

import msgspec

from ckpt.kinds import inet, sockets
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

# include/net/tcp_states.h
_CLOSE: Final = 7
_LISTEN: Final = 10

_TCP_INFO: Final = 11
_TCP_CONGESTION: Final = 13
_STATE_OFFSET: Final = 0
_BACKLOG_OFFSET: Final = 28  # struct tcp_info: tcpi_sacked, which is the backlog of a listener


class State(msgspec.Struct, frozen=True):
    """A TCP socket.

    Attributes:
        family: "inet" or "inet6".
        state: "closed" or "listen".
        address: its own, if it is bound.
        backlog: of a listener, as given to listen(2); else 0.
        congestion: name of the congestion control.
        common: options and owner.
    """

    family: str
    state: str
    address: inet.Address | None
    backlog: int
    congestion: str
    common: sockets.Common


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    domain, kind, protocol = sockets.family(source)
    return domain in inet.FAMILIES and kind == socket.SOCK_STREAM and protocol == socket.IPPROTO_TCP


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    with sockets.borrowed(source.local_fd) as s:
        info = s.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 104)
        state = info[_STATE_OFFSET]
        if state not in {_CLOSE, _LISTEN}:
            dump.refuse(
                source,
                f"it is an established TCP connection {_ends(s)}",
                "connections cannot be carried over yet; try again when it has ended",
            )
            return None
        common = inet.collect_common(source, {**sockets.TABLES[s.family], **sockets.TCP}, dump)
        if common is None:
            return None
        backlog = int.from_bytes(info[_BACKLOG_OFFSET : _BACKLOG_OFFSET + 4], "little")
        return State(
            family=inet.FAMILIES[s.family],
            state="listen" if state == _LISTEN else "closed",
            address=inet.own_address(s),
            backlog=backlog if state == _LISTEN else 0,
            congestion=_congestion(s),
            common=common,
        )


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    s = sockets.make(
        inet.number(state.family), socket.SOCK_STREAM, socket.IPPROTO_TCP, state.common
    )
    if _congestion(s) != state.congestion:
        s.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, state.congestion.encode())
    inet.bind(s, state.address, state.common)
    if state.state == "listen":
        s.listen(state.backlog)
    return sockets.set_status(s, file)


def _congestion(s: socket.socket) -> str:
    return s.getsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, 16).rstrip(b"\0").decode()


def _ends(s: socket.socket) -> str:
    try:
        own, peer = s.getsockname(), s.getpeername()
    except OSError as e:
        if e.errno != errno.ENOTCONN:
            raise
        return "on its way up or down"
    return f"from {peer[0]} port {peer[1]} to port {own[1]}"
