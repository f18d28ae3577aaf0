"""A mail that takes its time: one SMTP session, in the middle of DATA for as long as it likes.

Source: RFC 5321, "4.1.1 Command Semantics and Syntax".
"""

import itertools
import socket
import time

from examples.clients import Clients

SENDER, RECIPIENT, SUBJECT = "slow@elsewhere.test", "alice@pod.test", "a mail that takes its time"
TIMEOUT_S = 1800.0


class SlowMail:
    """Sent line by line."""

    def __init__(self, address: str, clients: Clients) -> None:
        """Connect, in the network namespace of the calling thread, and come to DATA.

        Raises:
            OSError: the server cannot be reached, or says no.
        """
        self._clients = clients
        self._socket = socket.create_connection((address, 25), TIMEOUT_S)
        self._replies = self._socket.makefile("rb")
        self._expect(b"220")
        for command in ("HELO client.test", f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{RECIPIENT}>"):
            self._send(command)
            self._expect(b"250")
        self._send("DATA")
        self._expect(b"354")
        self._send(f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nSubject: {SUBJECT}\r\n")
        self._numbers = itertools.count()
        self.lines: list[str] = []
        """What was sent of its body so far."""

    def go_on(self, pause_s: float) -> None:
        """Let a client send a line, and pause, again and again."""

        def add() -> None:
            began = time.monotonic()
            self._send(line := f"line {next(self._numbers)}")
            self.lines.append(line)
            self._clients.answered(began, 0)
            self._clients.over.wait(pause_s)

        self._clients.add(add, lambda: None)

    def end(self) -> None:
        """End the mail; the server has taken it when this returns.

        Raises:
            OSError: the server says no.
        """
        self._send(".")
        self._expect(b"250")
        self._send("QUIT")
        self._expect(b"221")
        self._socket.close()

    def _send(self, text: str) -> None:
        self._socket.sendall(text.encode() + b"\r\n")

    def _expect(self, code: bytes) -> None:
        while line := self._replies.readline():
            if not line.startswith(code):
                raise ConnectionError(f"the server says: {line.decode(errors='replace').strip()}")
            if line[3:4] != b"-":
                return
        raise ConnectionError("the server has closed the connection")
