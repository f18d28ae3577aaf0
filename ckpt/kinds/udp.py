"""UDP sockets: udp(7). Datagrams that wait in them are lost, as they may be in any network."""

import socket

import msgspec

from ckpt.kinds import inet, procinfo, sockets
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile


class State(msgspec.Struct, frozen=True):
    """A UDP socket.

    Attributes:
        family: "inet" or "inet6".
        address: its own, if it is bound.
        peer: what it is connected to, if it is.
        common: options and owner.
    """

    family: str
    address: inet.Address | None
    peer: inet.Address | None
    common: sockets.Common


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    domain, kind, protocol = sockets.family(source)
    return domain in inet.FAMILIES and kind == socket.SOCK_DGRAM and protocol == socket.IPPROTO_UDP


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    with sockets.borrowed(source.local_fd) as s:
        common = inet.collect_common(source, {**sockets.TABLES[s.family], **sockets.UDP}, dump)
        if common is None:
            return None
        groups = dump.once("multicast", lambda: _groups(dump.init_host_pid))
        if groups:
            # The kernel tells which are joined, but not by which socket.
            dump.refuse(source, f"programs have joined multicast groups ({', '.join(groups)})")
            return None
        if s.getsockopt(socket.IPPROTO_UDP, 1):  # UDP_CORK
            dump.refuse(source, "it is corked: a datagram is being put together")
            return None
        return State(
            family=inet.FAMILIES[s.family],
            address=inet.own_address(s),
            peer=inet.peer_address(s),
            common=common,
        )


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    s = sockets.make(inet.number(state.family), socket.SOCK_DGRAM, 0, state.common)
    inet.bind(s, state.address, state.common)
    if state.peer is not None:
        s.connect(inet.sockaddr(s, state.peer))
    return sockets.set_status(s, file)


def _groups(host_pid: int) -> list[str]:
    """Return the multicast groups that programs of the pod have joined."""
    return sorted(procinfo.parse_groups(*(_read(host_pid, name) for name in ("igmp", "igmp6"))))


def _read(host_pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{host_pid}/net/{name}", "rb") as f:
            return f.read()
    except FileNotFoundError:  # a kernel without that family
        return b""
