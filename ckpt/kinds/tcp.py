"""TCP sockets: tcp(7). Listening, bound, fresh, connected, and what is left of a connection.

A connection goes through three stages at a restart: complete() gives a new socket its addresses,
sequence numbers and what it has received, settle() what it has sent when all processes stand, and
release() has it speak when packets pass again; ckpt/connections.py calls the latter two.
docs/notes/connections.md has the reasons.

Connections that wait to be accepted do not survive: their peers see a reset, as they do when a
server is restarted.
"""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from ckpt.kinds import inet, ports, procinfo, sockets, tcprepair
from ckpt.kinds.forge import Forge
from ckpt.kinds.protocol import Dump, Loader, Source, Workshop
from ckpt.kinds.tcpconnection import NOTHING, Connection, NotPortable, Queue
from ckpt.model import OpenFile

_TCP_INFO: Final = 11
_TCP_CONGESTION: Final = 13
_TCP_ULP: Final = 31
_STATE_OFFSET: Final = 0
_BACKLOG_OFFSET: Final = 28  # struct tcp_info: tcpi_sacked, which is the backlog of a listener

# include/net/tcp_states.h
_PHASES: Final = {
    1: "established",
    2: "connecting",
    4: "fin_wait1",
    5: "fin_wait2",
    7: "closed",
    8: "close_wait",
    9: "last_ack",
    10: "listen",
    11: "closing",
}
_PLAIN: Final[dict[str, Literal["closed", "listen", "connecting"]]] = {
    "closed": "closed",
    "listen": "listen",
    "connecting": "connecting",
}
_NOT_SET_AGAIN: Final = {"tcp_maxseg", "tcp_window_clamp", "tcp_save_syn"}
"""Options that a connected socket shows otherwise than the program has set them."""
_LAST: Final = {"reuseaddr", "tcp_nodelay", "tcp_cork"}
"""Options that change how a connection is rebuilt, or are changed by it."""
_ATTEMPTS: Final = 5
_NO_NFTABLES: Final = {errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL}
_SOMEWHERE: Final = {
    socket.AF_INET: ("127.0.0.1", 9),
    socket.AF_INET6: ("::1", 9),
}


class State(msgspec.Struct, frozen=True):
    """A TCP socket.

    Attributes:
        family: "inet" or "inet6".
        state: "closed", "listen", "connecting", "connected", or "ended": of a connection that is
            no more.
        address: its own, if it is bound.
        backlog: of a listener, as given to listen(2); else 0.
        congestion: name of the congestion control.
        common: options and owner.
        peer: what it is connected or connecting to.
        connection: of a connected socket; of an ended one, what its peer still takes it for.
        unread: of an ended one: what the program has not read yet.
        failed: of an ended one: is its error still to be told to the program?
    """

    family: Literal["inet", "inet6"]
    state: Literal["closed", "listen", "connecting", "connected", "ended"]
    address: inet.Address | None
    backlog: int
    congestion: str
    common: sockets.Common
    peer: inet.Address | None = None
    connection: Connection | None = None
    unread: Queue | None = None
    failed: bool = False


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    domain, kind, protocol = sockets.family(source)
    return domain in inet.NAMES and kind == socket.SOCK_STREAM and protocol == socket.IPPROTO_TCP


# --- checkpoint ------------------------------------------------------------------------------


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    with sockets.borrowed(source.local_fd) as s:
        common = inet.collect_common(source, {**sockets.TABLES[s.family], **sockets.TCP}, dump)
        if common is None:
            return None
        info = s.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 104)
        phase = _PHASES.get(info[_STATE_OFFSET])
        if phase is None:
            dump.refuse(source, "it is a TCP connection on its way up", "try again in a moment")
            return None
        state = State(
            family=inet.NAMES[s.family],
            state=_PLAIN.get(phase, "connected"),
            address=inet.own_address(s),
            backlog=int.from_bytes(info[_BACKLOG_OFFSET : _BACKLOG_OFFSET + 4], "little")
            if phase == "listen"
            else 0,
            congestion=_congestion(s),
            common=common,
        )
        try:
            return _collect_connection(s, phase, state, source, dump)
        except NotPortable as e:
            dump.refuse(source, str(e), "give the connections up: --tcp close")
            return None


def _collect_connection(
    s: socket.socket, phase: str, state: State, source: Source, dump: Dump
) -> State:
    """Return *state* with what there is of a connection."""
    replace = msgspec.structs.replace
    if phase == "connecting":
        return replace(state, peer=_called(source, s, dump))
    if phase == "closed" and _events(s) & select.POLLRDHUP:
        unread = tcprepair.read_unread(s)
        queue = Queue(dump.store(unread), len(unread)) if unread else None
        failed = bool(_events(s) & select.POLLERR)
        return replace(state, state="ended", unread=queue, failed=failed)
    if phase in _PLAIN:
        return state
    if _ulp(s):
        raise NotPortable(f"the kernel processes it ({_ulp(s)}, TCP_ULP)")
    if dump.tcp != "close" and not dump.looking_only:
        _hold(source, dump)
    if dump.tcp != "keep":
        return ended(state)
    connection = None if dump.looking_only else tcprepair.read(s, phase, dump.store)
    common = _marked(state.common, dump.mark)
    return replace(state, peer=inet.peer_address(s), connection=connection, common=common)


def _marked(common: sockets.Common, mark: int) -> sockets.Common:
    """Return *common* with the mark of the host by which the connection goes: it will go on by it.

    One that another host of the overlay has begun has that one's.
    """
    if not mark or common.options.get("mark", [0]) != [0]:
        return common
    return msgspec.structs.replace(common, options={**common.options, "mark": [mark]})


def _hold(source: Source, dump: Dump) -> None:
    """Have no packet pass.

    Raises:
        NotPortable: the kernel cannot do that.
    """
    try:
        dump.hold_network(source.local_fd)
    except OSError as e:
        if e.errno not in _NO_NFTABLES:
            raise
        raise NotPortable("the kernel has no nftables to hold packets back (nf_tables)") from e


def ended(state: State, *, tell_peer: bool = False) -> State:
    """Return a connected socket as one whose connection was reset; the peer may hear of it."""
    replace = msgspec.structs.replace
    over = replace(state, state="ended", failed=True)
    return over if tell_peer else replace(over, connection=None, peer=None)


def is_in_use(fd: int) -> bool:
    """Is *fd* a TCP socket that listens or has a connection, at whatever stage?"""
    with sockets.borrowed(fd) as s:
        if (s.type, s.proto) != (socket.SOCK_STREAM, socket.IPPROTO_TCP):
            return False
        state: int = s.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0]
        return _PHASES.get(state) != "closed"


def silence(fd: int) -> None:
    """Have a connected socket close without a word to its peer; others are left alone."""
    with sockets.borrowed(fd) as s:
        if (s.type, s.proto) == (socket.SOCK_STREAM, socket.IPPROTO_TCP):
            state = s.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0]
            if _PHASES.get(state, "closed") not in _PLAIN:
                tcprepair.silence(s)


# --- restart ---------------------------------------------------------------------------------


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    skipped = _NOT_SET_AGAIN | _LAST if state.state in {"connected", "ended"} else set()
    options = {
        name: value
        for name, value in state.common.options.items()
        if name not in skipped and "multicast" not in name  # which a stream has not
    }
    common = msgspec.structs.replace(state.common, options=options)
    s = sockets.make(inet.number(state.family), socket.SOCK_STREAM, socket.IPPROTO_TCP, common)
    if _congestion(s) != state.congestion:
        s.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, state.congestion.encode())
    if state.state not in {"connected", "ended"}:
        _bind(state, s, workshop.once("tcp ports", lambda: _lent(workshop)).get(file.id, set()))
    if state.state == "listen":
        s.listen(state.backlog)
    return sockets.set_status(s, file)


def _lent(workshop: Workshop) -> dict[int, set[str]]:
    """Return what sockets are lent for a port that they share. A connection needs nothing."""
    return ports.lent_options(
        {
            number: ports.Bound(state.address, state.common, listens=state.state == "listen")
            for number, state in workshop.parts("tcp").items()
            if state.address is not None and state.state not in {"connected", "ended"}
        }
    )


def _bind(state: State, s: socket.socket, lent: set[str]) -> None:
    """Bind *s*; SO_REUSEADDR alone would not let it in beside one that listens already."""
    sockets.set_options(s, {name: [1] for name in lent})
    if "reuseaddr" in lent:
        with tcprepair.sharing(s):
            inet.bind(s, state.address, state.common)
    else:
        inet.bind(s, state.address, state.common)


def complete(state: State, fd: int, workshop: Workshop) -> None:
    """See protocol.Completing: connect it, without a packet, or take back what it was lent.

    Connections come after all listeners: they may share a port that a listener would not share.
    """
    with sockets.borrowed(fd) as s:
        if state.state == "connected":
            if state.connection is None or state.address is None or state.peer is None:
                raise ValueError("a connection without its state")
            tcprepair.begin(s, state.connection)
            inet.bind(s, state.address, state.common)
            s.connect(inet.sockaddr(s, state.peer))
            tcprepair.agree(s, state.connection)
            tcprepair.fill_received(s, state.connection.receiving, workshop.load)
        elif state.state == "ended":
            # Of its addresses nothing is to be seen any more.
            tcprepair.begin(s, NOTHING)
            s.bind((_SOMEWHERE[s.family][0], 0))
            s.connect(_SOMEWHERE[s.family])
            tcprepair.fill_received(s, _unread(state), workshop.load)
        else:
            ports.give_back(s, state.common)


def is_late(state: State) -> bool:
    """Is there something for settle() and release() to do?"""
    return state.state in {"connected", "connecting", "ended"}


def settle(state: State, s: socket.socket, load: Loader) -> None:
    """Give a connection its send queue, and take it out of repair mode; no packet passes yet."""
    if state.state == "connected" and state.connection is not None:
        tcprepair.fill_sent(s, state.connection, load)
    elif state.state == "ended":
        tcprepair.fill_sent(s, msgspec.structs.replace(NOTHING, receiving=_unread(state)), load)


def _unread(state: State) -> Queue:
    return state.unread or Queue(0, 0)


def release(state: State, s: socket.socket, load: Loader, forge: Forge) -> None:
    """Have a connection go on: packets pass again."""
    connection = state.connection
    late = {k: v for k, v in state.common.options.items() if k in _LAST}
    sockets.set_options(s, {k: v for k, v in late.items() if k != "reuseaddr"})
    if state.state == "connecting" and state.peer is not None:
        blocking = os.get_blocking(s.fileno())
        s.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            s.connect(inet.sockaddr(s, state.peer))
        s.setblocking(blocking)
    elif state.state == "ended":
        _end(state, s, forge)
    elif connection is not None and state.address is not None and state.peer is not None:
        _go_on(state.address, state.peer, connection, s, load, forge)
    sockets.set_options(s, late)


def _go_on(
    own: inet.Address,
    peer: inet.Address,
    connection: Connection,
    s: socket.socket,
    load: Loader,
    forge: Forge,
) -> None:
    tcprepair.probe(s)
    phase = connection.phase
    seq = connection.receive_sequence + connection.receiving.length

    def finish() -> None:
        forge.finish(peer, own, seq, tcprepair.acknowledged(s))

    if phase in {"close_wait", "last_ack"}:
        _until(s, {"close_wait"}, finish)
    tcprepair.send_rest(s, connection, load)
    if phase == "closing":
        _until(s, {"closing", "closed"}, finish)
    elif phase == "fin_wait2":
        ack = connection.send_sequence + connection.sending.length + 1
        _until(s, {"fin_wait2", "closed"}, lambda: forge.acknowledge(peer, own, seq, ack))
    tcprepair.buffers(s, connection)


def _end(state: State, s: socket.socket, forge: Forge) -> None:
    """Reset a connection to nowhere, so that the program finds it as it was."""
    if state.connection is not None and state.address is not None and state.peer is not None:
        forge.reset(state.address, state.peer, state.connection.send_sequence)
    own, peer = inet.own_address(s), inet.peer_address(s)
    length = _unread(state).length
    if own is not None and peer is not None:
        _until(s, {"closed"}, lambda: forge.reset(peer, own, NOTHING.receive_sequence + length))
    if not state.failed:
        s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _until(s: socket.socket, phases: set[str], send: Callable[[], None]) -> None:
    """Send a forged packet until it has had its effect: a packet of the peer may come between.

    Raises:
        OSError: it has none.
    """
    phase = None
    for _ in range(_ATTEMPTS):
        send()
        phase = _PHASES.get(s.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0])
        if phase in phases:
            return
    raise OSError(f"a TCP connection could not be brought from {phase} to {' or '.join(phases)}")


def _congestion(s: socket.socket) -> str:
    return s.getsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, 16).rstrip(b"\0").decode()


def _ulp(s: socket.socket) -> str:
    """Return what has been put upon the connection (TLS in the kernel), or ""."""
    with contextlib.suppress(OSError):
        return s.getsockopt(socket.IPPROTO_TCP, _TCP_ULP, 16).partition(b"\0")[0].decode()
    return ""


def _events(s: socket.socket) -> int:
    poll = select.poll()
    poll.register(s, select.POLLRDHUP)
    return sum(events for _, events in poll.poll(0))


def _called(source: Source, s: socket.socket, dump: Dump) -> inet.Address | None:
    """Return what a socket is connecting to: getpeername(2) tells only when it is connected."""
    name = "tcp6" if s.family == socket.AF_INET6 else "tcp"
    with open(f"/proc/{dump.init_host_pid}/net/{name}", "rb") as f:
        peer = procinfo.parse_peer(f.read(), source.stat.st_ino)
    own = inet.own_address(s)
    interface = own.interface if own and peer and peer[0].startswith("fe80:") else ""
    return inet.Address(peer[0], peer[1], interface=interface) if peer else None
