"""What /proc says about open files, mounts and process ids, parsed. Pure.

Source: proc_pid_fdinfo(5), proc_pid_mountinfo(5), proc_pid_status(5), proc_pid_stat(5).
"""

import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Final

import msgspec

from ckpt.kinds.protocol import Mount

_FDINFO: Final = re.compile(rb"pos:\t(\d+)\nflags:\t0(\d*)\nmnt_id:\t(\d+)\n(?:ino:\t(\d+)\n)?")
# include/net/tcp_states.h
_TCP_ACCEPTABLE: Final = {1, 8}  # ESTABLISHED, CLOSE_WAIT
_TCP_LEAVING: Final = {4, 9, 11}  # FIN_WAIT1, LAST_ACK, CLOSING
_SOLICITED: Final = "ff02::1:ff"
"""What groups begin with that the kernel itself joins for each IPv6 address: RFC 4291, 2.7.1."""


class FdInfo(msgspec.Struct, frozen=True):
    """The head of a /proc/PID/fdinfo file, the same for all kinds of files.

    Attributes:
        position: file offset.
        flags: status flags, without O_CLOEXEC.
        cloexec: is the descriptor closed by execve(2)?
        mount: mount id.
        inode: its number; 0 where the kernel does not tell (before Linux v5.14).
    """

    position: int
    flags: int
    cloexec: bool
    mount: int
    inode: int


def parse_fdinfo(text: bytes) -> FdInfo:
    """Parse the head of an fdinfo file.

    Raises:
        ValueError: it is of an unknown form.
    """
    match = _FDINFO.match(text)
    if match is None:
        raise ValueError(f"fdinfo of an unknown form: {text[:100]!r}")
    status = int(match[2] or b"0", 8)
    return FdInfo(
        position=int(match[1]),
        flags=status & ~os.O_CLOEXEC,
        cloexec=bool(status & os.O_CLOEXEC),
        mount=int(match[3]),
        inode=int(match[4] or b"0"),
    )


def parse_mounts(text: bytes) -> Iterator[Mount]:
    """Return the lines of a mountinfo file."""
    for line in text.splitlines():
        fields, _, rest = line.partition(b" - ")
        number, parent, device, root, point, options = fields.split(b" ")[:6]
        fstype, source, super_options = rest.split(b" ")
        major, minor = map(int, device.split(b":"))
        yield Mount(
            id=int(number),
            device=os.makedev(major, minor),
            point=re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), point),
            fstype=fstype.decode(),
            whole=root == b"/",
            read_only=b"ro" in options.split(b","),
            parent=int(parent),
            source=os.fsdecode(source),
            options=options.decode(),
            super_options=os.fsdecode(super_options),
        )


def parse_ids(status: bytes) -> Iterator[tuple[int, int]]:
    """Return (number on the host, number in the pod) of the task, its group and its session.

    NSpid and its like list the numbers from the reader's namespace inwards.
    """
    for label in (b"\nNStgid:", b"\nNSpid:", b"\nNSpgid:", b"\nNSsid:"):
        numbers = status.partition(label)[2].split(b"\n", 1)[0].split()
        if numbers:
            yield int(numbers[0]), int(numbers[-1])


def parse_terminal(stat: bytes) -> tuple[int, int, int]:
    """Return session, device number of the controlling terminal, and its foreground group.

    The device is 0 where there is none; the group is -1.
    """
    fields = stat.rpartition(b") ")[2].split()
    return int(fields[3]), int(fields[4]), int(fields[5])


class Group(msgspec.Struct, frozen=True):
    """A multicast group at an interface: its index and name, and the group's address."""

    index: int
    interface: str
    address: str


def parse_groups(igmp: bytes, igmp6: bytes) -> list[Group]:
    """Return the multicast groups that are joined, but for those of IPv6 addresses.

    Args:
        igmp: /proc/PID/net/igmp: for each interface a line, then one for each of its groups, which
            are 32-bit words in hexadecimal.
        igmp6: /proc/PID/net/igmp6: interface and address are the second and third column.

    Source: net/ipv4/igmp.c, igmp_mc_seq_show(); net/ipv6/mcast.c, igmp6_mc_seq_show().
    """
    groups, index, interface = [], 0, ""
    for line in igmp.decode().splitlines()[1:]:
        fields = line.split()
        if line.startswith("\t"):
            packed = int(fields[0], 16).to_bytes(4, sys.byteorder)
            groups.append(Group(index, interface, socket.inet_ntop(socket.AF_INET, packed)))
        else:
            index, interface = int(fields[0]), fields[1].rstrip(":")
    for line in igmp6.decode().splitlines():
        number, name, address, *_ = line.split()
        group = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
        groups.append(Group(int(number), name, group))
    return [group for group in groups if not group.address.startswith(_SOLICITED)]


def parse_peer(table: bytes, inode: int) -> tuple[str, int] | None:
    """Return the peer of the socket *inode*, address and port; None if it is not listed.

    Args:
        table: /proc/PID/net/tcp, raw, icmp, tcp6, …: addresses are 32-bit words in hexadecimal.
        inode: of the socket.

    Source: net/ipv4/tcp_ipv4.c, get_tcp4_sock(); net/ipv6/tcp_ipv6.c, get_tcp6_sock().
    """
    for line in table.splitlines()[1:]:
        fields = line.split()
        if int(fields[9]) == inode:
            words, _, port = fields[2].decode().partition(":")
            packed = b"".join(
                int(words[at : at + 8], 16).to_bytes(4, sys.byteorder)
                for at in range(0, len(words), 8)
            )
            family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
            return socket.inet_ntop(family, packed), int(port, 16)
    return None


def parse_tcp_unowned(table: bytes) -> tuple[int, int]:
    """Return how many connections nobody has accepted yet, and how many nobody has open any more.

    Of the latter, those count that still have something to deliver.

    Args:
        table: /proc/PID/net/tcp or tcp6; the inode is 0 where no process has the socket.

    Source: net/ipv4/tcp_ipv4.c, get_tcp4_sock(): the fifth field begins with SND.NXT - SND.UNA.
    """
    waiting = leaving = 0
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[9] == b"0":
            state, unsent = int(fields[3], 16), int(fields[4].partition(b":")[0], 16)
            waiting += state in _TCP_ACCEPTABLE
            leaving += state in _TCP_LEAVING and unsent > 0
    return waiting, leaving


def parse_tcp_in_use(table: bytes) -> int:
    """Return how many TCP sockets listen or have a connection.

    Args:
        table: /proc/PID/net/sockstat or sockstat6.

    Source: net/ipv4/proc.c, sockstat_seq_show(); those in TIME_WAIT do not count.
    """
    lines = [line.split() for line in table.splitlines()]
    return sum(int(line[2]) for line in lines if line[0] in {b"TCP:", b"TCP6:"})


def view_flags(view: str, link_mode: int) -> int:
    """Return how a file must be opened to be used as *view*: `map_files`, `exe`, `cwd`, `root`.

    The permissions of a link in map_files say how the mapped file was opened.

    Source: fs/proc/base.c, map_files_get_link() and proc_map_files_instantiate().
    """
    if view in {"cwd", "root"}:
        return os.O_PATH | os.O_DIRECTORY
    return os.O_RDWR if view == "map_files" and link_mode & 0o200 else os.O_RDONLY
