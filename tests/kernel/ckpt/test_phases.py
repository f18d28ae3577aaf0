"""TCP connections in each phase in which a checkpoint can find them, both ends in the pod."""

import contextlib
import errno
import os
import select
import socket
import struct

import pytest

from ckpt.kinds import sockets, tcprepair
from ckpt.kinds.forge import Forge
from ckpt.kinds.inet import Address
from tests.kernel.ckpt.loopback import (
    CLOSE,
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT1,
    FIN_WAIT2,
    HOSTS,
    LAST_ACK,
    OURS,
    SYN_SENT,
    THEIRS,
    all_passes,
    connect,
    keep,
    nothing_passes,
    phase,
    read,
    take,
    talk,
    wait_for,
)
from tests.kernel.ckpt.roundtrip import put, refusals, roundtrip

pytestmark = pytest.mark.needs("root", "namespaces")
FAMILIES = pytest.mark.parametrize("family", HOSTS)


@FAMILIES
def test_idle(family):
    def setup():
        one, other = connect(family)
        talk(one, other)
        names = one.getsockname(), other.getsockname()
        keep(one, other)
        return names

    def check(names):
        one, other = take(OURS), take(THEIRS)
        assert (one.getsockname(), other.getsockname()) == names
        assert (one.getpeername(), other.getpeername()) == names[::-1]
        assert phase(one) == phase(other) == ESTABLISHED
        talk(one, other)
        one.close()
        assert other.recv(1) == b""

    roundtrip(setup, check, network=True, mounts=True)


@FAMILIES
def test_unread_unacknowledged_and_unsent(family):
    """What fills the buffers of both ends, and the way between them."""

    def setup():
        one, other = connect(family)
        one.send(b"unread ")
        nothing_passes()
        one.send(b"unacknowledged ")
        one.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += one.send(b"y" * 10_000)
        one.setblocking(True)
        other.send(b"as well")
        keep(one, other)
        return sent

    def check(sent):
        one, other = take(OURS), take(THEIRS)
        assert read(other, 7) == b"unread "
        assert read(other, 15) == b"unacknowledged "
        assert read(other, sent) == b"y" * sent
        assert read(one, 7) == b"as well"
        talk(one, other)

    roundtrip(setup, check, network=True, mounts=True)


@FAMILIES
@pytest.mark.parametrize("data", [b"", b"before the end"])
def test_one_side_has_ended(family, data):
    """FIN_WAIT2 and CLOSE_WAIT."""

    def setup():
        one, other = connect(family)
        one.send(data)
        one.shutdown(socket.SHUT_WR)
        wait_for(lambda: (phase(one), phase(other)) == (FIN_WAIT2, CLOSE_WAIT))
        keep(one, other)

    def check(_):
        one, other = take(OURS), take(THEIRS)
        assert (phase(one), phase(other)) == (FIN_WAIT2, CLOSE_WAIT)
        assert read(other, 100) == data
        with pytest.raises(BrokenPipeError):
            one.send(b"x")
        other.send(b"answer")
        assert read(one, 6) == b"answer"
        other.close()
        assert one.recv(1) == b""
        wait_for(lambda: phase(one) == CLOSE)

    roundtrip(setup, check, network=True, mounts=True)


@FAMILIES
@pytest.mark.parametrize("unsent", [0, 1 << 20])
def test_the_end_is_not_acknowledged(family, unsent):
    """FIN_WAIT1, the FIN sent, or behind data that is not."""

    def setup():
        one, other = connect(family)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        nothing_passes()
        one.send(b"z" * unsent)
        one.shutdown(socket.SHUT_WR)
        assert (phase(one), phase(other)) == (FIN_WAIT1, ESTABLISHED)
        keep(one, other)

    def check(_):
        one, other = take(OURS), take(THEIRS)
        assert read(other, unsent + 1) == b"z" * unsent
        wait_for(lambda: (phase(one), phase(other)) == (FIN_WAIT2, CLOSE_WAIT))
        other.close()
        assert one.recv(1) == b""

    roundtrip(setup, check, network=True, mounts=True)


@FAMILIES
@pytest.mark.parametrize("unsent", [0, 1 << 20])
def test_the_last_acknowledgement_is_missing(family, unsent):
    """LAST_ACK: both have ended; what the second sends is not acknowledged."""

    def setup():
        one, other = connect(family)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        one.shutdown(socket.SHUT_WR)
        wait_for(lambda: (phase(one), phase(other)) == (FIN_WAIT2, CLOSE_WAIT))
        nothing_passes()
        other.send(b"z" * unsent)
        other.shutdown(socket.SHUT_WR)
        assert (phase(one), phase(other)) == (FIN_WAIT2, LAST_ACK)
        keep(one, other)

    def check(_):
        one, other = take(OURS), take(THEIRS)
        assert read(one, unsent + 1) == b"z" * unsent
        wait_for(lambda: (phase(one), phase(other)) == (CLOSE, CLOSE))

    roundtrip(setup, check, network=True, mounts=True)


@FAMILIES
def test_both_end_at_once(family):
    """CLOSING, and the peer has ended, too, but is not acknowledged: FIN_WAIT1."""

    def setup():
        one, other = connect(family)
        (seq,) = sequence_numbers(other)
        (ack,) = sequence_numbers(one)
        nothing_passes()
        one.shutdown(socket.SHUT_WR)
        other.shutdown(socket.SHUT_WR)
        all_passes()
        forge = Forge()
        forge.finish(address(other), address(one), seq, ack)
        nothing_passes()
        forge.close()
        assert (phase(one), phase(other)) == (CLOSING, FIN_WAIT1)
        keep(one, other)

    def check(_):
        one, other = take(OURS), take(THEIRS)
        assert one.recv(1) == other.recv(1) == b""
        wait_for(lambda: (phase(one), phase(other)) == (CLOSE, CLOSE))

    roundtrip(setup, check, network=True, mounts=True)


@FAMILIES
def test_ended(family):
    """Of a connection that is over, what was not read stays, and the error that was not told."""

    def setup():
        one, other = connect(family)
        other.send(b"the last")
        wait_for(lambda: sockets.is_readable(one))
        one.shutdown(socket.SHUT_WR)
        other.close()
        wait_for(lambda: phase(one) == CLOSE)
        os.dup2(one.detach(), 13)
        reset, peer = connect(family)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        wait_for(lambda: phase(reset) == CLOSE)
        os.dup2(reset.detach(), 12)

    def check(_):
        one, reset = take(13), take(12)
        assert (phase(one), phase(reset)) == (CLOSE, CLOSE)
        assert read(one, 100) == b"the last"
        with pytest.raises(ConnectionResetError):
            reset.recv(1)
        assert reset.recv(1) == b""

    roundtrip(setup, check, network=True, mounts=True)


def test_options():
    def setup():
        one, other = connect(socket.AF_INET, SO_KEEPALIVE=1)
        for s in (one, other):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12345)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        one.setblocking(False)
        other.setblocking(True)
        values = [options(s) for s in (one, other)]
        keep(one, other)
        return values

    def check(values):
        ends = one, other = socket.socket(fileno=OURS), socket.socket(fileno=THEIRS)
        for now, before in zip(map(options, ends), values, strict=True):
            assert {k: (now[k], v) for k, v in before.items() if v != now[k]} == {}
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b"lo\0"
        assert [os.get_blocking(s.fileno()) for s in ends] == [False, True]
        talk(one, other)

    roundtrip(setup, check, network=True, mounts=True)


def options(s):
    tcp = {n: v for n, v in vars(socket).items() if n.startswith("TCP_")}
    # What the kernel adapts all the time.
    changing = {"TCP_INFO", "TCP_CC_INFO", "TCP_MAXSEG", "TCP_WINDOW_CLAMP"}
    values = {}
    for name, number in tcp.items():
        if name not in changing:
            with contextlib.suppress(OSError):
                values[name] = s.getsockopt(socket.IPPROTO_TCP, number, 32)
    for name in ("SO_KEEPALIVE", "SO_REUSEADDR", "SO_LINGER", "SO_RCVBUF", "SO_SNDBUF"):
        values[name] = s.getsockopt(socket.SOL_SOCKET, getattr(socket, name), 8)
    values["IP_TOS"] = s.getsockopt(socket.IPPROTO_IP, socket.IP_TOS)
    agreed = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    values["agreed"] = agreed[5] & 7, agreed[6]
    return values


def test_corked():
    """What is corked stays so."""

    def setup():
        one, other = connect(socket.AF_INET)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        one.send(b"not a full segment")
        keep(one, other)

    def check(_):
        one, other = take(OURS), take(THEIRS)
        assert not sockets.is_readable(other)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        assert read(other, 18) == b"not a full segment"

    roundtrip(setup, check, network=True, mounts=True)


def test_beside_a_listener():
    """An accepted connection has the listener's port; the listener need not share it."""

    def setup():
        listener = socket.socket()
        listener.bind(("127.0.0.1", 25))
        listener.listen()
        put(socket.create_connection(("127.0.0.1", 25)), OURS)
        put(listener.accept()[0], THEIRS)
        put(listener, 12)

    def check(_):
        talk(take(OURS), take(THEIRS))
        socket.create_connection(("127.0.0.1", 25)).close()

    roundtrip(setup, check, network=True, mounts=True)


@pytest.mark.parametrize("over", [False, True])
def test_an_epoll_knows_of_what_waits(over):
    """No packet comes that would wake who waits for it."""

    def setup():
        one, other = connect(socket.AF_INET)
        one.send(b"request")
        wait_for(lambda: sockets.is_readable(other))
        if over:  # a connection that was reset, and has something to be read
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
            wait_for(lambda: phase(other) == CLOSE)
        epoll = select.epoll()
        epoll.register(THEIRS, select.EPOLLIN)
        os.dup2(epoll.fileno(), 12)
        keep(other, *([] if over else [one]))

    def check(_):
        epoll = select.epoll.fromfd(12)
        ((number, events),) = epoll.poll(0)
        assert number == THEIRS
        assert events & select.EPOLLIN

    roundtrip(setup, check, network=True, mounts=True)


def test_urgent_data_is_refused():
    def setup():
        one, other = connect(socket.AF_INET)
        one.send(b"before")
        one.send(b"!", socket.MSG_OOB)
        wait_for(lambda: sockets.is_readable(other))
        keep(one, other)

    (refusal,) = refusals(setup, network=True, mounts=True, look=False)
    assert refusal.why == "urgent data waits to be read from it (MSG_OOB)"


def test_a_look_changes_nothing():
    """Repair mode leaves no trace; a checkpoint of a running pod reads and goes on."""

    def setup():
        one, other = connect(socket.AF_INET)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        before = options(one), options(other)
        for s in (one, other):
            tcprepair.read(s, "established", lambda data: 0)
        assert (options(one), options(other)) == before
        talk(one, other)
        keep(one, other)

    roundtrip(setup, lambda _: None, network=True, mounts=True)


def sequence_numbers(s):
    connection = tcprepair.read(s, "established", lambda data: 0)
    return (connection.send_sequence,)


def address(s):
    return Address(*s.getsockname()[:2])


@FAMILIES
def test_on_its_way_up(family):
    """SYN_SENT: the socket calls again, from the same port."""

    def setup():
        listener = socket.create_server((HOSTS[family], 2525), family=family)
        put(listener, THEIRS)
        nothing_passes()
        caller = socket.socket(family)
        caller.setblocking(False)
        assert caller.connect_ex((HOSTS[family], 2525)) == errno.EINPROGRESS
        assert phase(caller) == SYN_SENT
        name = caller.getsockname()
        put(caller, OURS)
        return name

    def check(name):
        caller, listener = socket.socket(fileno=OURS), take(THEIRS)
        assert not os.get_blocking(OURS)
        other, whom = listener.accept()
        assert whom == name == caller.getsockname()
        wait_for(lambda: phase(caller) == ESTABLISHED)
        assert caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        other.settimeout(60)
        talk(caller, other)

    roundtrip(setup, check, network=True, mounts=True)
