"""The wall around a network namespace, and the announcement of its addresses."""

import os
import signal
import socket
import subprocess

import pytest

from launcher import abi, announce, wall

pytestmark = pytest.mark.needs("root", "namespaces")


@pytest.fixture
def netns():
    """A descriptor of a network namespace with a veth pair, one end of which has addresses."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    abi.unshare(abi.CLONE_NEWNET)
    try:
        fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        for line in (
            "link set lo up",
            "link add left address 02:50:00:00:00:01 type veth peer name right",
            "link set left up",
            "link set right up",
            "addr add 10.98.7.10/24 dev left",
            "addr add fd98:7::10/64 dev left nodad",
        ):
            subprocess.run(["ip", *line.split()], check=True)
    finally:
        abi.setns(own, abi.CLONE_NEWNET)
        os.close(own)
    yield fd
    os.close(fd)


def passes(netns, host):
    """Does a datagram come over the namespace's loopback?"""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with wall.inside(netns), socket.socket(family, socket.SOCK_DGRAM) as s:
        s.bind((host, 0))
        s.settimeout(20)  # it may come a moment later; what is not let out is refused at once
        try:
            s.sendto(b"x", s.getsockname())
        except PermissionError:
            return False
        return s.recv(1) == b"x"


def hosts_pass(netns):
    found = {passes(netns, host) for host in ("127.0.0.1", "::1", "10.98.7.10", "fd98:7::10")}
    assert len(found) == 1
    return found.pop()


def test_nothing_passes_until_it_is_open(netns):
    assert hosts_pass(netns)
    built = wall.build(netns)
    assert not hosts_pass(netns)
    built.open()
    assert hosts_pass(netns)
    built.close()
    built.close()
    assert hosts_pass(netns)


def test_it_goes_with_its_process(netns):
    child = os.fork()
    if child == 0:
        held = wall.build(netns)
        os.kill(os.getpid(), signal.SIGSTOP)
        held.close()
        os._exit(1)
    os.waitpid(child, os.WUNTRACED)
    assert not hosts_pass(netns)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert hosts_pass(netns)


def test_it_lasts(netns):
    wall.open_lasting(netns)  # there is none
    wall.remove(netns)
    child = os.fork()
    if child == 0:
        wall.build_lasting(netns)
        os._exit(0)
    os.waitpid(child, 0)
    assert not hosts_pass(netns)
    wall.build(netns).close()
    assert not hosts_pass(netns)
    wall.open_lasting(netns)
    assert hosts_pass(netns)
    wall.build_lasting(netns)  # closes the one that is open
    assert not hosts_pass(netns)
    wall.remove(netns)
    assert hosts_pass(netns)


def test_announcements_pass_it(netns):
    """As ARP does: a neighbour is told where the addresses are before packets pass."""
    mac = bytes.fromhex("025000000001")
    wall.build_lasting(netns)
    with wall.inside(netns):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind(("right", 3))
        wire.settimeout(60)
    with wire:
        announce.announce(netns)
        wanted = {
            b"\xff" * 6 + mac + b"\x08\x06" + b"\0\x01\x08\0\x06\x04\0\x01",
            b"\xff" * 6 + mac + b"\x08\x06" + b"\0\x01\x08\0\x06\x04\0\x02",
        }
        while wanted:
            wanted.discard(wire.recv(100)[:22])
        announce.fall_silent(netns)
    with wall.inside(netns):
        shown = subprocess.check_output(["ip", "-br", "link", "show", "up"], text=True)
    assert "UP" not in shown
