"""Both ends of connections whose every byte is checked; also the program that serves in the pod.

Each side sends the same endless pattern, and checks what it gets against it. When the client ends
its side, the server tells how much it has received and sent, ends its own, and the client compares.
"""

import contextlib
import selectors
import socket
import struct
import sys
import time

PERIOD = 65521  # a prime: a piece that is lost, doubled or moved shows
PATTERN = bytes((i * 7 + (i >> 8) * 13) & 255 for i in range(PERIOD)) * 3
PIECE = 5000
PAUSE_S = 0.005  # both sides are to leave something of the processors to others
TRAILER = struct.Struct("=QQ")


def pattern(offset, length):
    at = offset % PERIOD
    return PATTERN[at : at + length]


class End:
    """One end of a connection: how much was sent, how much received and found right."""

    def __init__(self, s):
        s.setblocking(False)
        self.socket = s
        self.sent = self.received = 0

    def send(self):
        with contextlib.suppress(BlockingIOError):
            self.sent += self.socket.send(pattern(self.sent, PIECE))

    def receive(self):
        """Return what came, not yet checked; None if nothing did."""
        try:
            return self.socket.recv(PIECE)
        except BlockingIOError:
            return None

    def check(self, data):
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            assert piece == pattern(self.received, len(piece)), f"wrong after {self.received}"
            self.received += len(piece)


class Server:
    """Serves connections, some of which are read slowly, until it is killed."""

    def __init__(self, host, port):
        self.selector = selectors.DefaultSelector()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server(
            (host, port), family=family, backlog=100, dualstack_ipv6=family == socket.AF_INET6
        )
        self.selector.register(self.listener, selectors.EVENT_READ)

    def serve(self):
        print("ready", flush=True)
        while True:
            for key, events in self.selector.select():
                if key.data is None:
                    end = End(self.listener.accept()[0])
                    both = selectors.EVENT_READ | selectors.EVENT_WRITE
                    self.selector.register(end.socket, both, end)
                else:
                    try:
                        self.step(key.data, events)
                    except OSError:
                        self.selector.unregister(key.fileobj)
                        key.fileobj.close()
            time.sleep(PAUSE_S)

    def step(self, end, events):
        if events & selectors.EVENT_WRITE:
            end.send()
        if events & selectors.EVENT_READ and (data := end.receive()) is not None:
            if data:
                end.check(data)
                return
            self.selector.unregister(end.socket)
            end.socket.setblocking(True)
            end.socket.sendall(TRAILER.pack(end.received, end.sent))
            end.socket.close()


class Client:
    """Many connections to a Server, each step of which sends and receives on all of them.

    A context manager that closes them.
    """

    def __init__(self, address, count):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.ends = []
        self.longest_gap = 0.0
        self.last = time.monotonic()
        for _ in range(count):
            s = socket.socket(family)
            s.connect(address)
            self.ends.append(End(s))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for end in self.ends:
            end.socket.close()

    def step(self):
        """Return how many bytes came."""
        came = 0
        for end in self.ends:
            end.send()
            data = end.receive()
            assert data != b"", "the server has closed"
            if data:
                end.check(data)
                came += len(data)
        now = time.monotonic()
        if came:
            self.longest_gap = max(self.longest_gap, now - self.last)
            self.last = now
        return came

    def run_until(self, enough, deadline_s=20):
        """Step until each connection has received *enough* more bytes."""
        goals = [end.received + enough for end in self.ends]
        deadline = time.monotonic() + deadline_s
        while any(end.received < goal for end, goal in zip(self.ends, goals, strict=True)):
            waiting = [end.received - goal for end, goal in zip(self.ends, goals, strict=True)]
            assert time.monotonic() < deadline, f"nothing comes: {waiting}"
            self.step()
            time.sleep(PAUSE_S)

    def finish(self):
        """End all connections and compare what both sides have counted."""
        for end in self.ends:
            end.socket.setblocking(True)
            end.socket.settimeout(60)
            end.socket.shutdown(socket.SHUT_WR)
            rest = b"".join(iter(lambda: end.socket.recv(PIECE), b""))  # noqa: B023
            end.check(rest[: -TRAILER.size])
            assert TRAILER.unpack(rest[-TRAILER.size :]) == (end.sent, end.received)
            end.socket.close()


if __name__ == "__main__":
    Server(sys.argv[1], int(sys.argv[2])).serve()
