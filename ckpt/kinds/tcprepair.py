"""An established TCP connection, read from its socket, or given to a new one: TCP_REPAIR.

The order of calls and the reasons are in docs/notes/connections.md. While a socket is in repair
mode it sends nothing, not even when it is closed. The network is behind a wall (launcher.wall)
while a connection is read, and until all of them stand again.

Source: Linux v6.1, net/ipv4/tcp.c: do_tcp_setsockopt(), do_tcp_getsockopt(), tcp_repair_*().
"""

import array
import errno
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast

from ckpt.kinds.protocol import Loader
from ckpt.kinds.tcpconnection import (
    THEY_ENDED,
    WE_ENDED,
    Connection,
    NotPortable,
    Phase,
    Queue,
    Window,
)

# <linux/tcp.h>
_TCP_MAXSEG: Final = 2
_TCP_INFO: Final = 11
_TCP_REPAIR: Final = 19
_TCP_REPAIR_QUEUE: Final = 20
_TCP_QUEUE_SEQ: Final = 21
_TCP_REPAIR_OPTIONS: Final = 22
_TCP_TIMESTAMP: Final = 24
_TCP_REPAIR_WINDOW: Final = 29
_REPAIR_ON, _REPAIR_OFF, _REPAIR_OFF_NO_WP = 1, 0, -1
_NO_QUEUE, _RECV_QUEUE, _SEND_QUEUE = 0, 1, 2
_TCPI_OPT_TIMESTAMPS, _TCPI_OPT_SACK, _TCPI_OPT_WSCALE = 1, 2, 4
_OPTION: Final = struct.Struct("=II")  # struct tcp_repair_opt
_WINDOW: Final = struct.Struct("=IIIII")  # struct tcp_repair_window
# include/net/tcp.h
_TCPOPT_MSS, _TCPOPT_WINDOW, _TCPOPT_SACK_PERM, _TCPOPT_TIMESTAMP = 2, 3, 4, 8
_SIOCOUTQNSD: Final = 0x894B  # <linux/sockios.h>
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_PEEK_OFF, _SO_BUF_LOCK = 32, 33, 42, 72

_PIECE: Final = 1 << 14  # larger ones may fail with ENOMEM
_ROOM_BYTES: Final = 64 << 20


# --- reading ---------------------------------------------------------------------------------


def read(s: socket.socket, phase: str, store: Callable[[bytes], int]) -> Connection:
    """Return the connection of *s*, which stays as it is; *phase* is Phase.

    Raises:
        NotPortable: it holds urgent data.
    """
    with _repairing(s), _peeking(s):
        queued, unsent = _count(s, termios.TIOCOUTQ), _count(s, _SIOCOUTQNSD)
        fin_queued = phase in WE_ENDED and phase != "fin_wait2"
        _choose(s, _SEND_QUEUE)
        send_end = _sequence(s) - (phase in WE_ENDED)
        sending = _peek(s, queued - fin_queued)
        _choose(s, _RECV_QUEUE)
        receive_end = _sequence(s) - (phase in THEY_ENDED)
        receiving = _peek(s, _unread(s))
        _choose(s, _NO_QUEUE)
        scale, sack, timestamps = _options(s)
        return Connection(
            phase=cast(Phase, phase),
            sending=Queue(store(sending) if sending else 0, len(sending)),
            unsent=max(unsent - fin_queued, 0),
            fin_unsent=fin_queued and unsent > 0,
            receiving=Queue(store(receiving) if receiving else 0, len(receiving)),
            send_sequence=(send_end - len(sending)) % 2**32,
            receive_sequence=(receive_end - len(receiving)) % 2**32,
            mss=_get(s, _TCP_MAXSEG),
            scale=scale,
            sack=sack,
            timestamp=_get(s, _TCP_TIMESTAMP) if timestamps else None,
            window=Window(
                *_WINDOW.unpack(s.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, 20))
            ),
            sndbuf=s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
            rcvbuf=s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        )


def read_unread(s: socket.socket) -> bytes:
    """Return what the program has not read of a connection that is over.

    Raises:
        NotPortable: it holds urgent data.
    """
    with _peeking(s):
        return _peek(s, _unread(s))


def silence(s: socket.socket) -> None:
    """Have *s* close without a word to its peer."""
    _set(s, _TCP_REPAIR, _REPAIR_ON)


@contextmanager
def sharing(s: socket.socket) -> Iterator[None]:
    """Have bind(2) let a fresh *s* in at any port; it has SO_REUSEADDR afterwards."""
    _set(s, _TCP_REPAIR, _REPAIR_ON)
    yield
    leave(s, 1)


def leave(s: socket.socket, reuse: int) -> None:
    """End repair mode, without a word to the peer; *reuse* is the former SO_REUSEADDR.

    Source: net/ipv4/tcp.c, TCP_REPAIR: it overwrites that.
    """
    _choose(s, _NO_QUEUE)
    _set(s, _TCP_REPAIR, _REPAIR_OFF_NO_WP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


@contextmanager
def _repairing(s: socket.socket) -> Iterator[None]:
    """Put *s* into repair mode for a moment, and leave no trace of it."""
    reuse = s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    _set(s, _TCP_REPAIR, _REPAIR_ON)
    try:
        yield
    finally:
        leave(s, reuse)


@contextmanager
def _peeking(s: socket.socket) -> Iterator[None]:
    """Have MSG_PEEK begin at the first byte: programs can move that (SO_PEEK_OFF, socket(7))."""
    try:
        offset = s.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
    except OSError:  # not for TCP before Linux v6.9
        offset = -1
    if offset < 0:
        yield
        return
    s.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)
    try:
        yield
    finally:
        s.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, offset)


def _unread(s: socket.socket) -> int:
    """Return how much waits to be read.

    Source: net/ipv4/tcp.c, tcp_inq(): with SO_OOBINLINE all of it, else up to the urgent mark.

    Raises:
        NotPortable: there is a mark.
    """
    inline = s.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    plain = _count(s, termios.FIONREAD)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    try:
        everything = _count(s, termios.FIONREAD)
    finally:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    if everything != plain:
        raise NotPortable("urgent data waits to be read from it (MSG_OOB)")
    return everything


def _peek(s: socket.socket, length: int) -> bytes:
    if not length:
        return b""
    data = s.recv(length, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    if len(data) != length:
        raise OSError(errno.EIO, f"{len(data)} bytes of {length} could be read of a TCP queue")
    return data


def _options(s: socket.socket) -> tuple[tuple[int, int] | None, bool, bool]:
    """Return window scales, SACK and timestamps, as struct tcp_info has them."""
    info = s.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 8)
    agreed, scales = info[5], info[6]
    scale = (scales & 0xF, scales >> 4) if agreed & _TCPI_OPT_WSCALE else None
    return scale, bool(agreed & _TCPI_OPT_SACK), bool(agreed & _TCPI_OPT_TIMESTAMPS)


# --- making ----------------------------------------------------------------------------------


def begin(s: socket.socket, connection: Connection) -> None:
    """Put the fresh *s* into repair mode, with sequence numbers; it is to be bound next."""
    _set(s, _TCP_REPAIR, _REPAIR_ON)
    for queue, number in (
        (_SEND_QUEUE, connection.send_sequence),
        (_RECV_QUEUE, connection.receive_sequence),
    ):
        _choose(s, queue)
        s.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, struct.pack("=I", number))
    _choose(s, _NO_QUEUE)


def agree(s: socket.socket, connection: Connection) -> None:
    """Set what the two sides have agreed on; right after connect(2), which sent nothing."""
    options = [(_TCPOPT_MSS, connection.mss)]
    if connection.scale is not None:
        theirs, ours = connection.scale
        options.append((_TCPOPT_WINDOW, theirs | ours << 16))
    if connection.sack:
        options.append((_TCPOPT_SACK_PERM, 0))
    if connection.timestamp is not None:
        options.append((_TCPOPT_TIMESTAMP, 0))
    packed = b"".join(_OPTION.pack(*option) for option in options)
    s.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_OPTIONS, packed)
    if connection.timestamp is not None:
        stamp = struct.pack("=I", connection.timestamp)
        s.setsockopt(socket.IPPROTO_TCP, _TCP_TIMESTAMP, stamp)


def fill_received(s: socket.socket, received: Queue, load: Loader) -> None:
    """Fill the receive queue of *s*, which is connected.

    Whoever is to watch *s* comes later: what is put there in repair mode wakes nobody
    (net/ipv4/tcp_input.c, tcp_send_rcvq()).
    """
    with _roomy(s):
        _choose(s, _RECV_QUEUE)
        _push(s, _load(load, received))
    _choose(s, _NO_QUEUE)


def fill_sent(s: socket.socket, connection: Connection, load: Loader) -> None:
    """Fill the send queue of *s* and end repair mode, without a word to the peer."""
    with _roomy(s):
        _choose(s, _SEND_QUEUE)
        sent = connection.sending.length - connection.unsent
        _push(s, _load(load, connection.sending)[:sent])
        if connection.phase in WE_ENDED and not _ends_later(connection):
            s.shutdown(socket.SHUT_WR)
    _choose(s, _NO_QUEUE)
    s.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, _window(connection))
    _set(s, _TCP_REPAIR, _REPAIR_OFF_NO_WP)


def probe(s: socket.socket) -> None:
    """Have the peer say what it has received: the way out of repair mode sends a window probe."""
    _set(s, _TCP_REPAIR, _REPAIR_ON)
    _set(s, _TCP_REPAIR, _REPAIR_OFF)


def send_rest(s: socket.socket, connection: Connection, load: Loader) -> None:
    """Send what was not sent yet, up to our FIN. If the peer has ended, its FIN came before."""
    if connection.unsent:
        with _roomy(s):
            _push(s, _load(load, connection.sending)[-connection.unsent :])
    if connection.phase in WE_ENDED and _ends_later(connection):
        if connection.fin_unsent:
            s.shutdown(socket.SHUT_WR)
            return
        _set(s, _TCP_REPAIR, _REPAIR_ON)
        _choose(s, _SEND_QUEUE)  # which makes it a FIN that was sent
        s.shutdown(socket.SHUT_WR)
        _choose(s, _NO_QUEUE)
        _set(s, _TCP_REPAIR, _REPAIR_OFF)


def buffers(s: socket.socket, connection: Connection) -> None:
    """Make the buffers as large as they were, and let them grow on, unless the program fixed it."""
    with _unlocked(s):
        s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, connection.sndbuf // 2)
        s.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, connection.rcvbuf // 2)


def acknowledged(s: socket.socket) -> int:
    """Return up to where the peer has acknowledged, as a sequence number."""
    with _repairing(s):
        _choose(s, _SEND_QUEUE)
        return _sequence(s) - _count(s, termios.TIOCOUTQ)


def _ends_later(connection: Connection) -> bool:
    """Does our FIN come after unsent data, or after the peer's?"""
    return connection.fin_unsent or connection.phase == "last_ack"


def _window(connection: Connection) -> bytes:
    """Return the window; the peer's FIN, which is not there yet, may not count in it.

    Source: net/ipv4/tcp.c, tcp_repair_set_window().
    """
    window = connection.window
    end = (connection.receive_sequence + connection.receiving.length) % 2**32
    updated = end if (window.rcv_wup - end) % 2**32 == 1 else window.rcv_wup
    return _WINDOW.pack(window.snd_wl1, window.snd_wnd, window.max_window, window.rcv_wnd, updated)


@contextmanager
def _unlocked(s: socket.socket) -> Iterator[None]:
    """Let the size of the buffers be changed without fixing it: SO_BUF_LOCK, since Linux v5.14."""
    try:
        lock = s.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
    except OSError:
        lock = None
    yield
    if lock is not None:
        s.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, lock)


@contextmanager
def _roomy(s: socket.socket) -> Iterator[None]:
    """Give *s* large buffers for a moment: the pieces may take more room than the old ones did."""
    sizes = [
        s.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)
    ]
    with _unlocked(s):
        s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM_BYTES)
        s.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM_BYTES)
        yield
        s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, sizes[0] // 2)
        s.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, sizes[1] // 2)


def _load(load: Loader, queue: Queue) -> bytes:
    return load(queue.first_page, queue.length) if queue.length else b""


def _push(s: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[s.send(view[:_PIECE], socket.MSG_DONTWAIT) :]


# --- options ---------------------------------------------------------------------------------


def _choose(s: socket.socket, queue: int) -> None:
    _set(s, _TCP_REPAIR_QUEUE, queue)


def _sequence(s: socket.socket) -> int:
    return _get(s, _TCP_QUEUE_SEQ)


def _set(s: socket.socket, option: int, value: int) -> None:
    s.setsockopt(socket.IPPROTO_TCP, option, value)


def _get(s: socket.socket, option: int) -> int:
    return s.getsockopt(socket.IPPROTO_TCP, option) & 0xFFFFFFFF


def _count(s: socket.socket, request: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(s.fileno(), request, count)
    return count[0]
