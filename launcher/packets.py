"""Packets, byte by byte. Pure.

Source: RFC 791, 768, 9293, 8200, 4861, 4862, 826, 5227, 1071.
"""

import ipaddress
import struct
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Endpoint = tuple[Address, int]
"""Address and port."""

TCP, UDP, ICMPV6 = 6, 17, 58
FIN, RST, ACK = 0x01, 0x04, 0x10
_EVERYBODY: Final = b"\xff" * 6
_ALL_NODES: Final = ipaddress.IPv6Address("ff02::1")
_SOLICITED: Final = ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13]
_ETHERTYPE_IPV4, _ETHERTYPE_ARP, _ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
_ARP_REQUEST, _ARP_REPLY = 1, 2
_NEIGHBOR_SOLICITATION, _NEIGHBOR_ADVERTISEMENT = 135, 136
_OVERRIDE: Final = 0x20000000
_HOPS: Final = 64


def checksum(data: bytes) -> int:
    """Return the checksum of the Internet protocols: RFC 1071."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(source: Address, target: Address, protocol: int, payload: bytes, hops: int = _HOPS) -> bytes:
    """Return an IP packet around *payload*. The kernel fills in what an IPv4 header lacks."""
    if isinstance(source, ipaddress.IPv6Address):
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops)
        return head + source.packed + target.packed + payload
    length = 20 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, hops, protocol, 0)
    return head + source.packed + target.packed + payload


def tcp(source: Endpoint, target: Endpoint, seq: int, ack: int, flags: int) -> bytes:
    """Return the IP packet of a TCP segment without data: RFC 9293."""
    ports = (source[1], target[1])
    head = struct.pack("!HHIIBBHHH", *ports, seq % 2**32, ack % 2**32, 5 << 4, flags, 0xFFFF, 0, 0)
    total = checksum(_pseudo_header(source[0], target[0], TCP, len(head)) + head)
    return ip(source[0], target[0], TCP, head[:16] + struct.pack("!H", total) + head[18:])


def udp(source: Endpoint, target: Endpoint, data: bytes) -> bytes:
    """Return the IP packet of a UDP datagram: RFC 768."""
    head = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0)
    total = checksum(_pseudo_header(source[0], target[0], UDP, 8 + len(data)) + head + data)
    body = head[:6] + struct.pack("!H", total or 0xFFFF) + data
    return ip(source[0], target[0], UDP, body)


def arp_announcements(mac: bytes, address: ipaddress.IPv4Address) -> list[bytes]:
    """Return the frames that tell everybody who has *address*, as request and as reply: RFC 5227.

    Some update what they know on the one, some on the other.
    """
    frames = []
    for operation in (_ARP_REQUEST, _ARP_REPLY):
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        target = _EVERYBODY if operation == _ARP_REPLY else bytes(6)
        arp += mac + address.packed + target + address.packed
        frames.append(_EVERYBODY + mac + struct.pack("!H", _ETHERTYPE_ARP) + arp)
    return frames


def neighbor_advertisement(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """Return the frame that tells everybody who has *address*: RFC 4861, 7.2.6."""
    body = struct.pack("!BBHI", _NEIGHBOR_ADVERTISEMENT, 0, 0, _OVERRIDE) + address.packed
    body += struct.pack("!BB", 2, 1) + mac  # the target's link-layer address
    total = checksum(_pseudo_header(address, _ALL_NODES, ICMPV6, len(body)) + body)
    body = body[:2] + struct.pack("!H", total) + body[4:]
    frame = b"\x33\x33" + _ALL_NODES.packed[-4:] + mac + struct.pack("!H", _ETHERTYPE_IPV6)
    return frame + ip(address, _ALL_NODES, ICMPV6, body, hops=255)


def who_has(mac: bytes, address: Address) -> bytes:
    """Return the frame that asks who has *address*, and does not say who asks but for the MAC.

    An ARP probe, RFC 5227, 2.1.1; a solicitation of the unspecified address, RFC 4862, 5.4.2.
    """
    if isinstance(address, ipaddress.IPv4Address):
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _ARP_REQUEST)
        arp += mac + bytes(4) + bytes(6) + address.packed
        return _EVERYBODY + mac + struct.pack("!H", _ETHERTYPE_ARP) + arp
    nobody = ipaddress.IPv6Address("::")
    group = ipaddress.IPv6Address(_SOLICITED + address.packed[-3:])
    body = struct.pack("!BBHI", _NEIGHBOR_SOLICITATION, 0, 0, 0) + address.packed
    total = checksum(_pseudo_header(nobody, group, ICMPV6, len(body)) + body)
    body = body[:2] + struct.pack("!H", total) + body[4:]
    frame = b"\x33\x33" + group.packed[-4:] + mac + struct.pack("!H", _ETHERTYPE_IPV6)
    return frame + ip(nobody, group, ICMPV6, body, hops=255)


def has(frame: bytes) -> tuple[Address, bytes] | None:
    """Return the address that *frame*, an answer to who_has(), tells of, and who has it; or None.

    Of IPv6 it is the sender of the frame, whatever options the answer has.
    """
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == _ETHERTYPE_ARP and len(frame) >= 14 + 28:
        if frame[14 + 6 : 14 + 8] == _ARP_REPLY.to_bytes(2):
            return ipaddress.IPv4Address(frame[14 + 14 : 14 + 18]), frame[14 + 8 : 14 + 14]
        return None
    if protocol(frame) == ICMPV6 and len(frame) >= 14 + 40 + 24:
        body = frame[14 + 40 :]
        if body[0] == _NEIGHBOR_ADVERTISEMENT:
            return ipaddress.IPv6Address(body[8:24]), frame[6:12]
    return None


def protocol(frame: bytes) -> int | None:
    """Return the protocol of the IP packet in an Ethernet *frame*; None: there is none.

    Of IPv6 it is what comes next to the header.
    """
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == _ETHERTYPE_IPV4 and len(frame) >= 14 + 20:
        return frame[14 + 9]
    if ethertype == _ETHERTYPE_IPV6 and len(frame) >= 14 + 40:
        return frame[14 + 6]
    return None


def _pseudo_header(source: Address, target: Address, protocol: int, length: int) -> bytes:
    if isinstance(source, ipaddress.IPv6Address):
        return source.packed + target.packed + struct.pack("!II", length, protocol)
    return source.packed + target.packed + struct.pack("!HH", protocol, length)
