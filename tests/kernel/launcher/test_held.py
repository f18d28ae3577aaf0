"""What comes while no packet passes is delivered afterwards."""

import os
import select
import socket
import subprocess
from contextlib import closing, suppress

import pytest

from launcher import abi, held, packets, wall

pytestmark = pytest.mark.needs("root", "namespaces")

HERE, THERE = "10.98.8.1", "10.98.8.2"
PORT = "held0"


@pytest.fixture
def netns():
    """A descriptor of a network namespace that has THERE; this one has HERE, at PORT."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    abi.unshare(abi.CLONE_NEWNET)
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    abi.setns(own, abi.CLONE_NEWNET)
    os.close(own)
    ip("link", "add", PORT, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/self/fd/{fd}")
    ip("addr", "add", f"{HERE}/24", "dev", PORT)
    ip("link", "set", PORT, "up")
    with wall.inside(fd):
        ip("link", "set", "lo", "up")
        ip("addr", "add", f"{THERE}/24", "dev", "eth0")
        ip("link", "set", "eth0", "up")
    reach(fd)
    yield fd
    ip("link", "del", PORT)
    os.close(fd)


def ip(*words):
    fds = [int(word.rpartition("/")[2]) for word in words if word.startswith("/proc/self/fd/")]
    subprocess.run(["ip", *words], check=True, pass_fds=fds)


def reach(netns):
    """Come back when THERE can be reached: the carrier is up and the neighbour known."""
    with bound(netns, socket.SOCK_DGRAM) as there, socket.socket(type=socket.SOCK_DGRAM) as here:
        there.settimeout(0.05)
        for _ in range(400):
            here.sendto(b"?", (THERE, 4000))
            with suppress(TimeoutError):
                there.recv(1)
                return
    raise TimeoutError(THERE)


def bound(netns, kind):
    with wall.inside(netns):
        s = socket.socket(socket.AF_INET, kind)
        s.bind((THERE, 4000))
        s.settimeout(20)
        return s


def taken(catcher, count):
    """At least *count* frames that come to *catcher*: a busy kernel brings them a moment later."""
    found = []
    for _ in range(400):
        found += catcher.take()
        if len(found) >= count:
            return found
        select.select([catcher._socket], [], [], 0.05)
    raise TimeoutError(f"{len(found)} of {count} frames")


def delivered(built, catcher, count):
    before = taken(catcher, count)
    built.open()
    after = held.only_tcp(catcher.take())
    with closing(held.Delivery()) as delivery:
        delivery.send(PORT, [*before, *after])
    return before


def test_datagrams_come_once_and_in_order(netns):
    with bound(netns, socket.SOCK_DGRAM) as there, socket.socket(type=socket.SOCK_DGRAM) as here:
        here.sendto(b"before", (THERE, 4000))
        with closing(wall.build(netns)) as built, closing(held.catch(netns)) as catcher:
            for number in range(100):
                here.sendto(b"%d" % number, (THERE, 4000))
            assert there.recv(100) == b"before"
            assert len(delivered(built, catcher, 100)) == 100
            here.sendto(b"after", (THERE, 4000))
        found = [there.recv(100) for _ in range(101)]
        assert found == [*(b"%d" % number for number in range(100)), b"after"]
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(100)


def test_a_connection_goes_on(netns):
    data = os.urandom(30_000)
    with bound(netns, socket.SOCK_STREAM) as listener:
        listener.listen()
        with socket.create_connection((THERE, 4000), 20) as here, listener.accept()[0] as there:
            with closing(wall.build(netns)) as built, closing(held.catch(netns)) as catcher:
                here.sendall(data)
                frames = delivered(built, catcher, 1)
                assert {packets.protocol(frame[10:]) for frame in frames} == {packets.TCP}
            there.settimeout(20)
            found = b""
            while len(found) < len(data):
                found += there.recv(1 << 16)
            assert found == data


def test_what_is_too_much_is_lost(netns, monkeypatch):
    monkeypatch.setattr(held, "MOST_BYTES", 5000)
    with (
        closing(wall.build(netns)),
        closing(held.catch(netns)) as catcher,
        socket.socket(type=socket.SOCK_DGRAM) as here,
    ):
        for _ in range(20):
            here.sendto(bytes(1000), (THERE, 4000))
        assert len(taken(catcher, 5)) == 5
        assert not catcher.take()


def test_no_such_port():
    with closing(held.Delivery()) as delivery:
        delivery.send("nosuchport", [bytes(100)])
