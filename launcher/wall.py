"""A wall around a network namespace: no IP packet comes in, goes out, or crosses its loopback.

Behind it TCP connections stand still while they are read or rebuilt: their peers see a pause, and
never the reset that a kernel without the connection would send. ARP passes, so that neighbours do
not forget the pod.

It is a table of nftables without rules, whose chains drop by policy. While a checkpoint works, the
table belongs to the netlink socket that made it and goes when that is closed, by SIGKILL, too
(NFT_TABLE_F_OWNER). The wall of a pod that has gone into an archive stays until it comes back.

Source: Linux v6.1, net/netfilter/nf_tables_api.c, net/netfilter/nfnetlink.c (nfnetlink_rcv_batch).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from launcher import abi

_PASSING: Final = b"autopod-passing\0"
_LASTING: Final = b"autopod-lasting\0"

# <linux/netlink.h>, <linux/netfilter/nfnetlink.h>
_NETLINK_NETFILTER: Final = 12
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 0x1, 0x4, 0x400
_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END = 0x10, 0x11
_NFNL_SUBSYS_NFTABLES: Final = 10
_HEADER: Final = struct.Struct("=IHHII")
_NFGENMSG: Final = struct.Struct(">BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NLA_F_NESTED: Final = 0x8000

# <linux/netfilter/nf_tables.h>, <linux/netfilter.h>
_NFT_MSG_NEWTABLE, _NFT_MSG_DELTABLE, _NFT_MSG_NEWCHAIN = 0, 2, 3
_NFTA_TABLE_NAME, _NFTA_TABLE_FLAGS = 1, 2
_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME, _NFTA_CHAIN_HOOK = 1, 3, 4
_NFTA_CHAIN_POLICY, _NFTA_CHAIN_TYPE = 5, 7
_NFTA_HOOK_HOOKNUM, _NFTA_HOOK_PRIORITY = 1, 2
_NFT_TABLE_F_OWNER: Final = 2  # since Linux v5.12
_NFPROTO_INET: Final = 1
_CHAINS: Final = {b"input\0": 1, b"output\0": 3}  # NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT
_PRIORITY: Final = -300
_DROP, _ACCEPT = 0, 1

Message = tuple[int, int, bytes]
"""Type, flags and attributes of a message to nf_tables."""


class Wall:
    """A wall that goes with whoever holds it. Made by build()."""

    def __init__(self, owner: socket.socket) -> None:
        self._owner = owner

    def open(self) -> None:
        """Let packets pass again, at once; close() then has time. Idempotent."""
        _change(self._owner, _passage(_PASSING))

    def close(self) -> None:
        """Take the wall down, which lasts some 20 ms. Idempotent."""
        if self._owner.fileno() >= 0:
            with self._owner as s:
                _change(s, _deletion(_PASSING))


def build(netns_fd: int) -> Wall:
    """Build a wall that lasts until it is closed, or its process ends.

    On Linux before v5.12 the end of the process is not enough.

    Raises:
        OSError: as netlink(7); EOPNOTSUPP or ENOENT where the kernel has no nftables.
    """
    s = _netlink(netns_fd)
    try:
        try:
            _change(s, _table(_PASSING, _NFT_TABLE_F_OWNER))
        except OSError as e:
            if e.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            _change(s, _table(_PASSING, 0))
    except BaseException:
        s.close()
        raise
    return Wall(s)


def build_lasting(netns_fd: int) -> None:
    """Build a wall that lasts until remove(). There may be one already.

    Raises:
        OSError: as netlink(7).
    """
    with _netlink(netns_fd) as s:
        _change(s, _table(_LASTING, 0))


def open_lasting(netns_fd: int) -> None:
    """Let packets pass the lasting wall again, if there is one; remove() then has time.

    Raises:
        OSError: as netlink(7).
    """
    with _netlink(netns_fd) as s, suppress(FileNotFoundError):
        _change(s, _passage(_LASTING))


def remove(netns_fd: int) -> None:
    """Take the lasting wall down, if there is one.

    Raises:
        OSError: as netlink(7).
    """
    with _netlink(netns_fd) as s, suppress(FileNotFoundError):
        _change(s, _deletion(_LASTING))


@contextmanager
def inside(netns_fd: int) -> Iterator[None]:
    """Be in a network namespace for a moment; the caller has one thread, or means this one."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        abi.setns(netns_fd, abi.CLONE_NEWNET)
        try:
            yield
        finally:
            abi.setns(own, abi.CLONE_NEWNET)
    finally:
        os.close(own)


def _netlink(netns_fd: int) -> socket.socket:
    with inside(netns_fd):
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)


def _table(name: bytes, flags: int) -> list[Message]:
    """Return the messages that make the table, with its chains."""
    made = [
        _attribute(_NFTA_TABLE_NAME, name) + _attribute(_NFTA_TABLE_FLAGS, struct.pack(">I", flags))
    ]
    for chain, hook in _CHAINS.items():
        where = _attribute(_NFTA_HOOK_HOOKNUM, struct.pack(">I", hook)) + _attribute(
            _NFTA_HOOK_PRIORITY, struct.pack(">i", _PRIORITY)
        )
        made.append(
            _attribute(_NFTA_CHAIN_TABLE, name)
            + _attribute(_NFTA_CHAIN_NAME, chain)
            + _attribute(_NFTA_CHAIN_HOOK | _NLA_F_NESTED, where)
            + _attribute(_NFTA_CHAIN_POLICY, struct.pack(">I", _DROP))
            + _attribute(_NFTA_CHAIN_TYPE, b"filter\0")
        )
    kinds = [_NFT_MSG_NEWTABLE] + [_NFT_MSG_NEWCHAIN] * len(_CHAINS)
    return [(kind, _NLM_F_CREATE, body) for kind, body in zip(kinds, made, strict=True)]


def _passage(name: bytes) -> list[Message]:
    accept = _attribute(_NFTA_CHAIN_POLICY, struct.pack(">I", _ACCEPT))
    return [
        (
            _NFT_MSG_NEWCHAIN,
            0,
            _attribute(_NFTA_CHAIN_TABLE, name) + _attribute(_NFTA_CHAIN_NAME, chain) + accept,
        )
        for chain in _CHAINS
    ]


def _deletion(name: bytes) -> list[Message]:
    return [(_NFT_MSG_DELTABLE, 0, _attribute(_NFTA_TABLE_NAME, name))]


def _change(s: socket.socket, messages: list[Message]) -> None:
    """Have nf_tables do all that *messages* say, or nothing.

    Raises:
        OSError: what the kernel answers.
    """
    subsystem = _NFGENMSG.pack(0, 0, _NFNL_SUBSYS_NFTABLES)
    batch = _message(_NFNL_MSG_BATCH_BEGIN, 0, subsystem)
    for kind, flags, body in messages:
        head = _NFGENMSG.pack(_NFPROTO_INET, 0, 0)
        batch += _message(_NFNL_SUBSYS_NFTABLES << 8 | kind, flags | _NLM_F_ACK, head + body)
    s.send(batch + _message(_NFNL_MSG_BATCH_END, 0, subsystem))
    for _ in messages:
        answer = s.recv(1 << 16)
        if _HEADER.unpack_from(answer)[1] != _NLMSG_ERROR:
            raise OSError(errno.EPROTO, "nf_tables: no acknowledgement")
        err = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if err:
            raise OSError(err, f"nf_tables: {os.strerror(err)}")


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _NLM_F_REQUEST, 0, 0) + body


def _attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)
