"""Both sides of an SMTP conversation with the pod: a client, and a smarthost that may be down.

Source: RFC 5321, "4.1.1 Command Semantics and Syntax".
"""

import contextlib
import smtplib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage


def answers(address: str, port: int = 25) -> bool:
    """Return whether an SMTP server greets at *address* (reply code 220)."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            return connection.recv(512).startswith(b"220")
    except OSError:
        return False


def send(server: str, sender: str, recipient: str, subject: str) -> None:
    """Hand one short message to *server*.

    Raises:
        smtplib.SMTPException: it was refused.
        OSError: the server does not answer.
    """
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, recipient, subject
    message.set_content(f"{subject}\n")
    with smtplib.SMTP(server, timeout=60, local_hostname="client.test") as client:
        client.send_message(message)


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Return as soon as *true()*, or a little later: to look takes half of the time at most.

    What is looked at may take a command of ours each time, and what is waited for needs the
    processor, too.

    Raises:
        TimeoutError: it did not come true; the text says *what*.
    """
    deadline = time.monotonic() + seconds
    while True:
        before = time.monotonic()
        if true():
            return
        after = time.monotonic()
        if after > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain until {what}")
        time.sleep(max(0.01, after - before))


class _Session(socketserver.StreamRequestHandler):
    """One client of the smarthost: everything is accepted, messages are kept."""

    server: "_Server"

    def handle(self) -> None:
        self._reply(b"220 smarthost.test")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                self._reply(b"354 go ahead")
                self.server.messages.append(self._message())
            self._reply(b"221 bye" if verb == b"QUIT" else b"250 ok")
            if verb == b"QUIT":
                return

    def _message(self) -> str:
        lines = iter(self.rfile.readline, b".\r\n")
        return b"".join(line.removeprefix(b".") for line in lines).decode()

    def _reply(self, text: bytes) -> None:
        self.wfile.write(text + b"\r\n")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__((address, 25), _Session)
        self.messages: list[str] = []


@contextlib.contextmanager
def smarthost(address: str) -> Iterator[list[str]]:
    """Run a mail server at *address*; give the list to which it adds what it receives."""
    with _Server(address) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.messages
        finally:
            server.shutdown()
            thread.join()
