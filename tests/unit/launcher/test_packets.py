"""Packets as the standards have them: checked against others' bytes."""

import ipaddress

import pytest

from launcher import packets

FOUR, OTHER = ipaddress.IPv4Address("10.98.0.10"), ipaddress.IPv4Address("10.98.0.1")
SIX, SIXTH = ipaddress.IPv6Address("fd00::10"), ipaddress.IPv6Address("fd00::1")
MAC = bytes.fromhex("025000000a0b")


def test_checksum():
    """The example of RFC 1071, section 3, and an odd length."""
    assert packets.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert packets.checksum(b"\x01") == 0xFEFF


def right(pseudo, body):
    """What is received sums up to zero."""
    return packets.checksum(pseudo + body) == 0


def test_tcp():
    packet = packets.tcp((FOUR, 25), (OTHER, 40000), 1 << 32 | 7, 9, packets.FIN | packets.ACK)
    assert len(packet) == 40
    assert packet[2:4] == b"\0\x28"
    assert packet[20:] == bytes.fromhex("00199c40 00000007 00000009 5011ffff") + packet[36:]
    assert right(FOUR.packed + OTHER.packed + b"\0\x06\0\x14", packet[20:])


def test_udp_of_both_families():
    packet = packets.udp((SIX, 53), (SIXTH, 5353), b"odd")
    assert packet[:8] == bytes.fromhex("60000000000b1140")
    assert right(SIX.packed + SIXTH.packed + b"\0\0\0\x0b\0\0\0\x11", packet[40:])
    packet = packets.udp((FOUR, 53), (OTHER, 5353), b"even")
    assert right(FOUR.packed + OTHER.packed + b"\0\x11\0\x0c", packet[20:])


def test_announcements():
    request, reply = packets.arp_announcements(MAC, FOUR)
    assert request[:14] == reply[:14] == b"\xff" * 6 + MAC + b"\x08\x06"
    assert request[20:22] + reply[20:22] == b"\0\x01\0\x02"
    assert request[22:32] == reply[22:32] == MAC + FOUR.packed
    frame = packets.neighbor_advertisement(MAC, SIX)
    assert frame[:6].hex(":") == "33:33:00:00:00:01"
    assert frame[21] == 255  # no router has passed it on
    target = ipaddress.IPv6Address("ff02::1").packed
    assert right(SIX.packed + target + b"\0\0\0\x20\0\0\0\x3a", frame[54:])
    assert frame[-8:] == b"\x02\x01" + MAC


@pytest.mark.parametrize("text", ["10.98.0.10", "fd98::10"])
def test_who_asks_does_not_say_who(text):
    address = ipaddress.ip_address(text)
    frame = packets.who_has(MAC, address)
    assert frame[6:12] == MAC
    if address.version == 4:
        assert frame[:6] == b"\xff" * 6
        assert frame[14 + 14 : 14 + 18] == bytes(4)
        assert frame[-4:] == address.packed
    else:
        assert frame[:6] == bytes.fromhex("3333ff000010")
        assert frame[14 + 8 : 14 + 24] == bytes(16)
        assert frame[-16:] == address.packed
    assert packets.has(frame) is None


def test_an_answer_says_who():
    four, six = ipaddress.IPv4Address("10.98.0.10"), ipaddress.IPv6Address("fd98::10")
    request, reply = packets.arp_announcements(MAC, four)
    assert packets.has(request) is None
    assert packets.has(reply) == (four, MAC)
    assert packets.has(packets.neighbor_advertisement(MAC, six)) == (six, MAC)
    for length in range(len(reply)):
        assert packets.has(reply[:length]) is None
