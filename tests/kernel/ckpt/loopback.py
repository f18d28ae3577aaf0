"""A TCP connection to ourselves, brought into whichever phase, and what it can do then."""

import contextlib
import os
import socket
import time

from launcher import wall
from tests.kernel.ckpt.roundtrip import put

HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
OURS, THEIRS = 10, 11
ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2 = 1, 2, 4, 5
CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING = 7, 8, 9, 11


def take(number):
    s = socket.socket(fileno=number)
    s.settimeout(60)
    return s


def phase(s):
    return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def connect(family, **options):
    """A connection to ourselves, at descriptors OURS and THEIRS."""
    with socket.create_server((HOSTS[family], 0), family=family) as listener:
        for name, value in options.items():
            listener.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        ours = socket.create_connection(listener.getsockname()[:2])
        theirs, _ = listener.accept()
        put(ours, OURS)
        put(theirs, THEIRS)
    return take(OURS), take(THEIRS)


def nothing_passes():
    """From now on, what is sent over our loopback is not acknowledged."""
    with own_network() as fd:
        wall.build_lasting(fd)


def all_passes():
    with own_network() as fd:
        wall.remove(fd)


@contextlib.contextmanager
def own_network():
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def keep(*sockets):
    for s in sockets:
        s.detach()


def read(s, length):
    data = b""
    while len(data) < length and (piece := s.recv(length - len(data))):
        data += piece
    return data


def talk(one, other):
    """Both directions work, with more than any buffer holds."""
    for source, target in ((one, other), (other, one)):
        source.setblocking(False)
        sent = received = 0
        while received < 3_000_000:
            if sent < 3_000_000:
                with contextlib.suppress(BlockingIOError):
                    sent += source.send(b"x" * min(100_000, 3_000_000 - sent))
            data = target.recv(100_000) if sent > received else b""
            received += len(data)
        source.settimeout(60)


def wait_for(predicate):
    deadline = time.monotonic() + 60
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.001)
