"""Packets that peers have sent, or would send, made again in the pod's network namespace.

What a socket knows by having received it (the peer's FIN, the acknowledgement of ours, a reset, a
datagram with its sender) no call can set. So the packet comes again, from a raw socket by the
namespace's loopback, with the peer's address as its source: raw(7), IP_HDRINCL.
"""

import contextlib
import ipaddress
import socket

from ckpt.kinds.inet import Address
from launcher import packets

_ACK, _FIN, _RST = packets.ACK, packets.FIN, packets.RST


class Forge:
    """Sends forged packets in the network namespace that it is made and used in. Close it."""

    def __init__(self) -> None:
        self._four = _raw(socket.AF_INET)
        self._six = None
        with contextlib.suppress(OSError):  # a kernel without IPv6
            self._six = _raw(socket.AF_INET6)

    def close(self) -> None:
        """Close its sockets."""
        self._four.close()
        if self._six is not None:
            self._six.close()

    def finish(self, source: Address, target: Address, seq: int, ack: int) -> None:
        """Send a FIN."""
        self._send(packets.tcp(_endpoint(source), _endpoint(target), seq, ack, _FIN | _ACK), target)

    def acknowledge(self, source: Address, target: Address, seq: int, ack: int) -> None:
        """Send an acknowledgement."""
        self._send(packets.tcp(_endpoint(source), _endpoint(target), seq, ack, _ACK), target)

    def reset(self, source: Address, target: Address, seq: int) -> None:
        """Send a reset."""
        self._send(packets.tcp(_endpoint(source), _endpoint(target), seq, 0, _RST), target)

    def datagram(self, source: Address, target: Address, data: bytes) -> None:
        """Send a UDP datagram."""
        self._send(packets.udp(_endpoint(source), _endpoint(target), data), target)

    def _send(self, packet: bytes, target: Address) -> None:
        host = _host(target)
        if isinstance(host, ipaddress.IPv4Address):
            self._four.sendto(packet, (str(host), 0))
        elif self._six is not None:
            scope = socket.if_nametoindex(target.interface) if target.interface else 0
            self._six.sendto(packet, (str(host), 0, 0, scope))


def _raw(family: int) -> socket.socket:
    return socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)


def _endpoint(address: Address) -> packets.Endpoint:
    return _host(address), address.port


def _host(address: Address) -> packets.Address:
    """Return the address; IPv4 where it stands in an IPv6 one."""
    host = ipaddress.ip_address(address.host)
    return getattr(host, "ipv4_mapped", None) or host
