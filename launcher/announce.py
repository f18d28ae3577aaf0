"""Tells the neighbours of a network namespace where its addresses are now.

Whoever moved brings them from another switch port, and maybe another host: until a frame of theirs
has passed, switches send where they were, and neighbours use what they remember.
"""

import array
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from launcher import packets, wall

_SIOCGIFCONF, _SIOCSIFFLAGS, _SIOCGIFHWADDR = 0x8912, 0x8914, 0x8927  # netdevice(7)
_IFREQ_BYTES: Final = 40
_ROOM: Final = 256 * _IFREQ_BYTES
_ARPHRD_ETHER: Final = 1


def announce(netns_fd: int) -> None:
    """Announce every address of every Ethernet interface of a network namespace.

    Raises:
        OSError: as packet(7).
    """
    with wall.inside(netns_fd), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        found: list[tuple[str, packets.Address]] = [*_addresses(s), *_addresses6()]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:  # slow to close
            for name, address in found:
                mac = _mac(s, name)
                for frame in frames(mac, address) if mac else ():
                    wire.sendto(frame, (name, 0))


def fall_silent(netns_fd: int) -> None:
    """Take every interface of a network namespace down: its addresses are elsewhere now.

    Raises:
        OSError: as netdevice(7).
    """
    with wall.inside(netns_fd), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            request = struct.pack("16sh22x", name.encode(), 0)
            fcntl.ioctl(s.fileno(), _SIOCSIFFLAGS, request)


def frames(mac: bytes, address: packets.Address) -> list[bytes]:
    """Return the frames that tell everybody who has *address*."""
    if isinstance(address, ipaddress.IPv4Address):
        return packets.arp_announcements(mac, address)
    return [packets.neighbor_advertisement(mac, address)]


def _addresses(s: socket.socket) -> Iterator[tuple[str, ipaddress.IPv4Address]]:
    """Return interface and address, as netdevice(7), SIOCGIFCONF."""
    buffer = array.array("B", bytes(_ROOM))
    where, _ = buffer.buffer_info()
    answer = fcntl.ioctl(s.fileno(), _SIOCGIFCONF, struct.pack("iP", _ROOM, where))
    (used,) = struct.unpack_from("i", answer)
    for at in range(0, used, _IFREQ_BYTES):
        request = buffer[at : at + _IFREQ_BYTES].tobytes()
        # Of an address's label, "eth0:1", the first part is the interface.
        name = request[:16].rstrip(b"\0").decode().partition(":")[0]
        yield name, ipaddress.IPv4Address(request[20:24])


def _addresses6() -> Iterator[tuple[str, ipaddress.IPv6Address]]:
    try:
        text = Path("/proc/thread-self/net/if_inet6").read_text()
    except FileNotFoundError:  # a kernel without IPv6
        return
    for line in text.splitlines():
        fields = line.split()
        yield fields[5], ipaddress.IPv6Address(bytes.fromhex(fields[0]))


def _mac(s: socket.socket, name: str) -> bytes | None:
    """Return the interface's address; None if it is not an Ethernet one."""
    answer = fcntl.ioctl(s.fileno(), _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
    (kind,) = struct.unpack_from("H", answer, 16)
    return answer[18:24] if kind == _ARPHRD_ETHER else None
