"""Sockets of the network through collector and workshop: TCP, UDP, raw, packets."""

import os
import socket
import struct

import pytest

from ckpt.kinds import multicast, sockdiag
from tests.kernel.ckpt.roundtrip import put, refusals, roundtrip, take

pytestmark = pytest.mark.needs("root")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_tcp_listener(family):
    def setup():
        s = socket.socket(family)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind(("", 25))
        s.listen(13)
        put(s, 10)
        put(socket.socket(family), 11)
        bound = socket.socket(family)
        bound.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 2525))
        put(bound, 12)

    def check(_):
        s = take(10)
        assert s.getsockname()[1] == 25
        assert s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert s.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 7)
        assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 7
        assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        assert struct.unpack_from("I", info, 28) == (13,)
        client = socket.create_connection((("127.0.0.1", "::1")[family == socket.AF_INET6], 25))
        s.accept()[0].send(b"220")
        assert client.recv(10) == b"220"
        bound = take(12)
        assert bound.getsockname()[1] == 2525
        bound.listen()
        fresh = take(11)
        fresh.connect(bound.getsockname()[:2])

    roundtrip(setup, check, network=True)


def test_listeners_that_share_a_port():
    def setup():
        for number in (10, 11):
            s = socket.socket()
            os.fchown(s.fileno(), 33, 33)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            s.bind(("127.0.0.1", 80))
            s.listen()
            put(s, number)

    def check(_):
        one, other = take(10), take(11)
        assert one.getsockname() == other.getsockname() == ("127.0.0.1", 80)
        assert os.fstat(10).st_uid == os.fstat(11).st_uid == 33
        client = socket.create_connection(("127.0.0.1", 80))
        client.close()

    roundtrip(setup, check, network=True)


def shared(*sockets):
    """Sockets at one port: (domain, kind, address, options at bind(2), options later, backlog)."""

    def setup():
        made = []
        for family, kind, host, then, _, _ in sockets:
            s = socket.socket(family, kind)
            for option in then:
                s.setsockopt(socket.SOL_SOCKET, option, 1)
            s.bind((host, 80))
            made.append(s)
        for s, (*_, backlog) in zip(made, sockets, strict=True):
            if backlog is not None:
                s.listen(backlog)
        for number, (s, (*_, later, _)) in enumerate(zip(made, sockets, strict=True), 10):
            for option in (REUSEADDR, REUSEPORT):
                s.setsockopt(socket.SOL_SOCKET, option, option in later)
            put(s, number)

    return setup


REUSEADDR, REUSEPORT = socket.SO_REUSEADDR, socket.SO_REUSEPORT
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
FOUR, SIX = socket.AF_INET, socket.AF_INET6
HERE, MAPPED = "127.0.0.1", "::ffff:127.0.0.1"
SHARED = {
    "one listener": [
        (FOUR, TCP, HERE, [REUSEPORT], [], 3),
        (FOUR, TCP, HERE, [REUSEPORT], [REUSEPORT], 3),
    ],
    "the other listener": [
        (FOUR, TCP, HERE, [REUSEPORT], [REUSEPORT], 3),
        (FOUR, TCP, HERE, [REUSEPORT], [], 3),
    ],
    "both listeners": [
        (SIX, TCP, "::1", [REUSEPORT], [], 3),
        (SIX, TCP, "::1", [REUSEPORT, REUSEADDR], [REUSEADDR], 3),
    ],
    "mapped": [
        (SIX, TCP, MAPPED, [REUSEPORT], [], 3),
        (FOUR, TCP, HERE, [REUSEPORT], [], 3),
    ],
    "all addresses": [
        (SIX, TCP, "::", [REUSEPORT], [], 3),
        (FOUR, TCP, "0.0.0.0", [REUSEPORT], [], 3),
        (FOUR, TCP, HERE, [REUSEPORT], [REUSEPORT], 3),
    ],
    "a listener and one that is bound": [
        (FOUR, TCP, HERE, [REUSEADDR], [REUSEADDR], 3),
        (FOUR, TCP, HERE, [REUSEADDR], [REUSEADDR], None),
        (FOUR, TCP, HERE, [REUSEADDR], [], None),
    ],
    "datagrams": [
        (FOUR, UDP, HERE, [REUSEPORT], [], None),
        (FOUR, UDP, HERE, [REUSEPORT], [REUSEPORT], None),
    ],
    "datagrams, mapped": [
        (SIX, UDP, MAPPED, [REUSEADDR], [], None),
        (FOUR, UDP, HERE, [REUSEADDR], [], None),
        (SIX, UDP, "::", [REUSEADDR], [REUSEADDR], None),
    ],
}


@pytest.mark.parametrize("case", SHARED)
def test_a_port_is_shared_by_options_that_were_taken_back(case):
    """SO_REUSEPORT, SO_REUSEADDR: what counts is what they were at bind(2) and listen(2)."""

    def check(_):
        made = [take(number) for number in range(10, 10 + len(SHARED[case]))]
        for s, (_, kind, host, _, later, backlog) in zip(made, SHARED[case], strict=True):
            assert s.getsockname()[:2] == (host, 80)
            for option in (REUSEADDR, REUSEPORT):
                assert s.getsockopt(socket.SOL_SOCKET, option) == (option in later)
            if kind == TCP:
                info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                assert (info[0], info[28]) == ((7, 0) if backlog is None else (10, backlog))
        family, kind, host, *_ = SHARED[case][0]
        with socket.socket(family, kind) as stranger:
            with pytest.raises(OSError, match="Address already in use"):
                stranger.bind((host, 80))
            if kind == TCP:
                stranger.connect(("::1" if host == "::" else host, 80))

    roundtrip(shared(*SHARED[case]), check, network=True)


def test_a_port_that_is_not_shared_stays_so():
    """Nobody who asks for SO_REUSEPORT is let in where nobody has had it."""

    def setup():
        for number, host in ((10, HERE), (11, "127.0.0.2")):
            s = socket.socket()
            s.bind((host, 80))
            s.listen()
            put(s, number)

    def check(_):
        for option in (REUSEADDR, REUSEPORT):
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, option, 1)
                with pytest.raises(OSError, match="Address already in use"):
                    s.bind((HERE, 80))

    roundtrip(setup, check, network=True)


FAMILIES = {socket.AF_INET: ["127.0.0.1", "127.0.0.2"], socket.AF_INET6: ["::1", "::1"]}


@pytest.mark.parametrize("bound", ["to an address", "to all", "connected"])
@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_that_wait(family, bound):
    """They come again, each from its sender, also those that are empty."""
    own, other = FAMILIES[family]
    senders = [(other, 1001), (own, 1002)]

    def setup():
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.bind(("" if bound == "to all" else own, 5353))
        for at, sender in enumerate(senders):
            with socket.socket(family, socket.SOCK_DGRAM) as from_there:
                from_there.bind(sender)
                if bound == "connected":
                    s.connect(sender)
                for data in (b"first", b"", b"x" * 9000):
                    from_there.sendto(data + bytes([at]) * bool(data), (own, 5353))
        put(s, 10)

    def check(_):
        s = take(10)
        s.settimeout(60)
        for at, sender in enumerate(senders):
            for data in (b"first", b"", b"x" * 9000):
                got, whom = s.recvfrom(10000)
                assert (got, whom[:2]) == (data + bytes([at]) * bool(data), sender)
        s.setblocking(False)
        with pytest.raises(BlockingIOError):
            s.recv(1)
        assert [s.getsockopt(0, 20), s.getsockopt(socket.SOL_SOCKET, 42)] == [0, -1]

    roundtrip(setup, check, network=True, mounts=True)


def test_multicast():
    """Groups, at which interface, from which sources; other sockets have not joined them."""

    def setup():
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind(("", 5353))
        lo = socket.inet_aton("127.0.0.1")
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, lo)
        mreq = socket.inet_aton("224.0.0.251") + lo
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreq)
        only = socket.inet_aton("232.1.1.1") + lo + socket.inet_aton("10.1.1.1")
        s.setsockopt(socket.IPPROTO_IP, 39, only)  # IP_ADD_SOURCE_MEMBERSHIP
        put(s, 10)
        six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        index = socket.if_nametoindex("lo")
        mreq = socket.inet_pton(socket.AF_INET6, "ff02::fb") + struct.pack("i", index)
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, mreq)
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        put(six, 11)
        put(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 12)

    expected = [
        multicast.Multicast(
            [
                multicast.Membership("lo", "224.0.0.251", False, []),
                multicast.Membership("lo", "232.1.1.1", True, ["10.1.1.1"]),
            ],
            "127.0.0.1",
        ),
        multicast.Multicast([multicast.Membership("lo", "ff02::fb", False, [])], "", "lo"),
        multicast.Multicast(),
    ]

    def check(_):
        class Dump:
            init_host_pid = os.getpid()
            once = staticmethod(lambda _, make: make())

        assert [multicast.collect(take(number), Dump) for number in (10, 11, 12)] == expected

    roundtrip(setup, check, network=True, mounts=True)


def test_raw_sockets():
    def setup():
        icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        icmp.setsockopt(255, 1, struct.pack("=I", ~(1 << 0) & 0xFFFFFFFF))  # echo replies only
        icmp.bind(("127.0.0.1", 0))
        put(icmp, 10)
        header = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
        header.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        header.connect(("127.0.0.2", 0))
        put(header, 11)
        six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        six.setsockopt(socket.IPPROTO_ICMPV6, 1, b"\xff" * 31 + b"\x0f")
        put(six, 12)
        put(socket.socket(socket.AF_INET6, socket.SOCK_RAW, 253), 13)

    def check(_):
        icmp, header, six, other = map(take, range(10, 14))
        assert icmp.getsockname()[0] == "127.0.0.1"
        assert header.getsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL) == 1
        header.send(b"\x45\0" + bytes(7) + b"\xfd" + bytes(6) + socket.inet_aton("127.0.0.2"))
        assert six.getsockopt(socket.IPPROTO_ICMPV6, 1, 32) == b"\xff" * 31 + b"\x0f"
        assert (other.type, other.proto) == (socket.SOCK_RAW, 253)
        echo = b"\x08\0" + struct.pack("!H", ~0x0800 & 0xFFFF) + bytes(4)
        icmp.settimeout(60)
        icmp.sendto(echo, ("127.0.0.1", 0))
        assert icmp.recv(100)[20] == 0  # the request itself is filtered

    roundtrip(setup, check, network=True, mounts=True)


def test_a_corked_datagram_is_refused():
    def setup():
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect(("127.0.0.1", 9))
        s.setsockopt(socket.IPPROTO_UDP, 1, 1)  # UDP_CORK
        s.send(b"to be continued")
        put(s, 10)

    (refusal,) = refusals(setup, network=True)
    assert refusal.why == "it is corked: a datagram is being put together"


def packet_socket():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.bind(("lo", 0x88B5))
    return s


def test_memberships_of_packet_sockets():
    group = bytes.fromhex("33330000002a")
    wanted = [(0, group, 1), (1, b"", 2)]  # PACKET_MR_MULTICAST, PACKET_MR_PROMISC

    def joined(s):
        found = sockdiag.packet_sockets(os.getpid())[os.fstat(s.fileno()).st_ino]
        return sorted((one.type, one.address, one.count) for one in found.joined)

    def setup():
        s = packet_socket()
        for kind, address, count in wanted:
            for _ in range(count):
                packed = struct.pack("=iHH8s", 1, kind, len(address), address)
                s.setsockopt(263, 1, packed)  # SOL_PACKET, PACKET_ADD_MEMBERSHIP
        assert joined(s) == wanted
        put(s, 10)

    def check(_):
        assert joined(take(10)) == wanted

    roundtrip(setup, check, network=True, mounts=True)


def test_packet_sockets_that_are_refused():
    def setup():
        ring = packet_socket()
        ring.setsockopt(263, 5, struct.pack("=4I", 4096, 1, 2048, 2))  # PACKET_RX_RING
        put(ring, 10)
        shared = packet_socket()
        shared.setsockopt(263, 18, 7)  # PACKET_FANOUT
        put(shared, 11)

    assert [refusal.why for refusal in refusals(setup, network=True, mounts=True)] == [
        "it has a ring of packets (PACKET_RX_RING, PACKET_TX_RING)",
        "it shares packets with other sockets (PACKET_FANOUT)",
    ]


def test_other_families_are_refused_by_name():
    def setup():
        put(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK), 10)

    assert [refusal.why for refusal in refusals(setup, network=True, mounts=True)] == [
        "a socket of AF_NETLINK SOCK_RAW protocol 2 cannot be carried over",
    ]
