"""What comes for a pod while no packet passes its wall: kept, and delivered when it is opened.

Otherwise a datagram would be lost, and the peer of a connection would notice the opening only when
it sends again, for which it waits twice as long each time. A packet(7) socket sees frames before
the wall drops them. They are delivered by sending them from the host's end of the pod's veth pair.
"""

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from launcher import packets, wall

_ETH_P_ALL: Final = 3
# <linux/if_packet.h>
_SOL_PACKET: Final = 263
_SO_RCVBUFFORCE: Final = 33  # <asm-generic/socket.h>
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23  # since Linux v4.20
_HEADER: Final = 10
"""Bytes of struct virtio_net_hdr: whether checksum and segmentation are still to be done."""
_LONGEST: Final = _HEADER + (1 << 16) + 64
MOST_BYTES: Final = 2 << 20
_ROOM: Final = 4 * MOST_BYTES  # the kernel counts its own structures, too


class Catcher:
    """Keeps what comes to a network namespace. Made by catch()."""

    def __init__(self, taps: socket.socket) -> None:
        self._socket = taps
        self._bytes = 0

    def take(self) -> list[bytes]:
        """Return the IP packets that have come to the namespace since the last call: frames.

        What is more than MOST_BYTES in all is lost, as all was without a catcher.
        """
        found = []
        while self._bytes < MOST_BYTES:
            try:
                frame, where = self._socket.recvfrom(_LONGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno != errno.ENETDOWN:  # the interface was taken down: told once
                    raise
                continue
            _, _, kind, *_ = where
            if kind == socket.PACKET_HOST and packets.protocol(frame[_HEADER:]) is not None:
                found.append(frame)
                self._bytes += len(frame)
        return found

    def close(self) -> None:
        """Catch no more, which lasts some 20 ms. Idempotent."""
        self._socket.close()


def catch(netns_fd: int) -> Catcher:
    """Keep what comes to a network namespace from now on.

    Raises:
        OSError: as packet(7).
    """
    with wall.inside(netns_fd):
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    try:
        s.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        s.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        s.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    except BaseException:
        s.close()
        raise
    return Catcher(s)


def only_tcp(frames: Iterable[bytes]) -> list[bytes]:
    """Return those which may come twice. Pure."""
    return [one for one in frames if packets.protocol(one[_HEADER:]) == packets.TCP]


class Delivery:
    """Delivers to pods of this host."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def send(self, port: str, frames: Iterable[bytes]) -> None:
        """Send *frames* to the other end of the veth pair whose host's end is *port*.

        What cannot be sent is lost, as a network may lose it.
        """
        if self._socket is None:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)  # and receives nothing
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        for frame in frames:
            with suppress(OSError):
                self._socket.sendto(frame, (port, 0))

    def close(self) -> None:
        """End, which lasts some 20 ms. Idempotent."""
        if self._socket is not None:
            self._socket.close()
