"""What sockets of all families have: options, an owner, a packet filter.

Options are kept by name with their values as getsockopt(2) gives them; a rebuilt socket gets only
those that differ from what it was born with, so that defaults stay the running kernel's.
"""

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from ckpt.kinds import abi, flags
from ckpt.kinds.protocol import Source
from ckpt.model import OpenFile

_INT: Final = "i"
_PAIR: Final = "ii"  # struct linger
_TIME: Final = "ll"  # struct timeval
_ABSENT: Final = (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTCONN)

_OFF: Final = ([0], [-1])
"""What an option that was never set says; -1 is SO_PEEK_OFF's."""

Table = Mapping[str, tuple[int, int, str]]


def _table(level: int, form: str, **numbers: int) -> dict[str, tuple[int, int, str]]:
    return {name: (level, number, form) for name, number in numbers.items()}


# <asm-generic/socket.h>, the same on x86_64 and aarch64.
_SOCKET: Final[Table] = {
    **_table(
        socket.SOL_SOCKET,
        _INT,
        reuseaddr=2,
        dontroute=5,
        broadcast=6,
        keepalive=9,
        oobinline=10,
        no_check=11,
        priority=12,
        reuseport=15,
        passcred=16,
        rcvlowat=18,
        timestamp=29,
        passsec=34,
        timestampns=35,
        mark=36,
        timestamping=37,
        rxq_ovfl=40,
        peek_off=42,
        busy_poll=46,
        zerocopy=60,
        passpidfd=76,
    ),
    **_table(socket.SOL_SOCKET, _PAIR, linger=13),
    **_table(socket.SOL_SOCKET, _TIME, rcvtimeo=20, sndtimeo=21),
}
# <linux/in.h>
_IP: Final[Table] = _table(
    socket.IPPROTO_IP,
    _INT,
    ip_tos=1,
    ip_ttl=2,
    ip_recvopts=6,
    ip_pktinfo=8,
    ip_mtu_discover=10,
    ip_recverr=11,
    ip_recvttl=12,
    ip_recvtos=13,
    ip_freebind=15,
    ip_transparent=19,
    ip_recvorigdstaddr=20,
    ip_minttl=21,
    ip_bind_address_no_port=24,
    ip_multicast_ttl=33,
    ip_multicast_loop=34,
    ip_multicast_all=49,
    ip_local_port_range=51,
)
# <linux/in6.h>
_IPV6: Final[Table] = _table(
    socket.IPPROTO_IPV6,
    _INT,
    ipv6_unicast_hops=16,
    ipv6_multicast_hops=18,
    ipv6_multicast_loop=19,
    ipv6_mtu_discover=23,
    ipv6_recverr=25,
    ipv6_v6only=26,
    ipv6_multicast_all=29,
    ipv6_flowinfo_send=33,
    ipv6_recvpktinfo=49,
    ipv6_recvhoplimit=51,
    ipv6_dontfrag=62,
    ipv6_recvtclass=66,
    ipv6_tclass=67,
    ipv6_autoflowlabel=70,
    ipv6_addr_preferences=72,
    ipv6_recvorigdstaddr=74,
    ipv6_freebind=78,
)
# <linux/tcp.h>
TCP: Final[Table] = _table(
    socket.IPPROTO_TCP,
    _INT,
    tcp_nodelay=1,
    tcp_maxseg=2,
    tcp_cork=3,
    tcp_keepidle=4,
    tcp_keepintvl=5,
    tcp_keepcnt=6,
    tcp_syncnt=7,
    tcp_linger2=8,
    tcp_defer_accept=9,
    tcp_window_clamp=10,
    tcp_user_timeout=18,
    tcp_fastopen=23,
    tcp_notsent_lowat=25,
    tcp_save_syn=27,
    tcp_fastopen_connect=30,
    tcp_inq=36,
)
# <linux/udp.h>
UDP: Final[Table] = _table(
    socket.IPPROTO_UDP,
    _INT,
    udp_cork=1,
    udp_no_check6_tx=101,
    udp_no_check6_rx=102,
    udp_segment=103,
    udp_gro=104,
)
# <linux/in.h>, <linux/in6.h>
RAW: Final[Table] = {
    **_table(socket.IPPROTO_IP, _INT, ip_hdrincl=3),
    **_table(255, _INT, ipv6_checksum=7),  # SOL_RAW
}
# <linux/netlink.h>
_SOL_NETLINK: Final = 270
NETLINK: Final[Table] = _table(
    _SOL_NETLINK,
    _INT,
    netlink_pktinfo=3,
    netlink_broadcast_error=4,
    netlink_no_enobufs=5,
    netlink_listen_all_nsid=8,
    netlink_cap_ack=10,
    netlink_ext_ack=11,
    netlink_get_strict_chk=12,
)
# <linux/if_packet.h>
PACKET: Final[Table] = _table(
    263,  # SOL_PACKET
    _INT,
    packet_auxdata=8,
    packet_origdev=9,
    packet_version=10,
    packet_reserve=12,
    packet_loss=14,
    packet_vnet_hdr=15,
    packet_timestamp=17,
    packet_qdisc_bypass=20,
    packet_ignore_outgoing=23,
)
TABLES: Final[Mapping[int, Table]] = {
    socket.AF_UNIX: _SOCKET,
    socket.AF_INET: {**_SOCKET, **_IP},
    socket.AF_INET6: {**_SOCKET, **_IP, **_IPV6},
    socket.AF_NETLINK: {**_SOCKET, **NETLINK},
    socket.AF_PACKET: {**_SOCKET, **PACKET},
}

_SO_BINDTODEVICE: Final = 25
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SO_BUF_LOCK: Final = 72  # since Linux v5.14
_SNDBUF_LOCK, _RCVBUF_LOCK = 1, 2


class Common(msgspec.Struct, frozen=True):
    """What every socket has.

    Attributes:
        options: by name; a value of two parts (linger, timeouts) is a list.
        sndbuf, rcvbuf: bytes as getsockopt(2) gives them, where the program has set them.
        device: name of the interface that it is bound to, or "".
        filter: classic BPF program (socket(7), SO_ATTACH_FILTER), or empty.
        uid, gid: owner of its inode, whom the kernel asks who may share a port.
    """

    options: dict[str, list[int]]
    sndbuf: int | None
    rcvbuf: int | None
    device: str
    filter: bytes
    uid: int
    gid: int


def family(source: Source) -> tuple[int, int, int]:
    """Return address family, type and protocol of *source*; (-1, -1, -1) if it is no socket."""
    if not source.link.startswith("socket:["):
        return -1, -1, -1
    with borrowed(source.local_fd) as s:
        return s.family, s.type, s.proto


@contextlib.contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """Use a descriptor as a socket object; it stays open, and blocking or not as it is."""
    s = socket.socket(fileno=fd)
    try:
        yield s
    finally:
        s.detach()


def is_readable(s: socket.socket) -> bool:
    """Does anything wait to be read, be it the end? Not where there was never a connection."""
    poll = select.poll()
    poll.register(s, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


def collect_common(source: Source, table: Table) -> Common:
    """Return the common part; *table* lists the options of its family and protocol.

    Raises:
        OSError: EACCES: it has a filter that only its program knows.
    """
    with borrowed(source.local_fd) as s:
        locked = _get(s, (socket.SOL_SOCKET, _SO_BUF_LOCK, _INT)) or [0]
        values = {name: _get(s, option) for name, option in table.items()}
        return Common(
            options={name: value for name, value in values.items() if value is not None},
            sndbuf=_buffer(s, socket.SO_SNDBUF) if locked[0] & _SNDBUF_LOCK else None,
            rcvbuf=_buffer(s, socket.SO_RCVBUF) if locked[0] & _RCVBUF_LOCK else None,
            device=s.getsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, 16)
            .rstrip(b"\0")
            .decode("utf-8", "replace"),
            filter=_filter(source.local_fd),
            uid=source.stat.st_uid,
            gid=source.stat.st_gid,
        )


def _filter(fd: int) -> bytes:
    try:
        return abi.get_filter(fd)
    except PermissionError as e:
        raise PermissionError(e.errno, "a BPF program filters it that cannot be read") from None


def make(domain: int, kind: int, protocol: int, common: Common) -> socket.socket:
    """Return a new socket with its owner, device and options, but not yet bound.

    Raises:
        OSError: an option is not taken; a note names it.
    """
    s = socket.socket(domain, kind | socket.SOCK_CLOEXEC, protocol)
    adopt(s, common)
    if common.device:
        s.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, common.device.encode())
    return s


def adopt(s: socket.socket, common: Common) -> None:
    """Give a new socket its owner and options."""
    stat = os.fstat(s.fileno())
    if (stat.st_uid, stat.st_gid) != (common.uid, common.gid):
        os.fchown(s.fileno(), common.uid, common.gid)
    if common.sndbuf is not None:
        s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, common.sndbuf // 2)
    if common.rcvbuf is not None:
        s.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, common.rcvbuf // 2)
    set_options(s, common.options)
    if common.filter:
        abi.attach_filter(s.fileno(), common.filter)


def set_options(s: socket.socket, options: Mapping[str, list[int]]) -> None:
    """Set the options that differ from what *s* has."""
    known = {**TABLES[s.family], **TCP, **UDP, **RAW}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"unknown socket option {name!r}")
        level, number, form = known[name]
        if differs(_get(s, known[name]), value):
            try:
                s.setsockopt(level, number, struct.pack(form, *value))
            except OSError as e:
                e.add_note(f"while setting the socket option {name} to {value}")
                raise


def differs(here: list[int] | None, value: list[int]) -> bool:
    """Is there something to set for an option to become *value*? Pure.

    Which options a kind of socket has changes with the kernel, in both directions: SO_PEEK_OFF came
    to TCP in v6.9, SO_PASSCRED was taken from it in v6.16. One that is off is not missed.

    Args:
        here: its value now; None where this kernel has no such option for the socket.
        value: what it was.
    """
    return value not in _OFF if here is None else here != value


def set_status(s: socket.socket, file: OpenFile) -> int:
    """Set the status flags; return the descriptor, which the caller owns."""
    s.setblocking(not flags.open_flags(file.flags) & os.O_NONBLOCK)
    return s.detach()


def _get(s: socket.socket, option: tuple[int, int, str]) -> list[int] | None:
    level, number, form = option
    try:
        value = s.getsockopt(level, number, struct.calcsize(form))
    except OSError as e:
        if e.errno in _ABSENT:
            return None
        raise
    # Some options of the IP levels are a single byte long if the caller gives room for it.
    return list(struct.unpack(form, value.ljust(struct.calcsize(form), b"\0")))


def _buffer(s: socket.socket, number: int) -> int:
    return s.getsockopt(socket.SOL_SOCKET, number)
