"""A shell on a terminal, with a running vim that is stopped and continued by job control."""

import re
import socket
import time
from contextlib import contextmanager

from examples.clients import TIMEOUT_S
from tests.kernel.autopod.programs.program import TOML

# The master of the terminal is in the pod, so that what is typed comes by a connection.
START = (
    "/usr/bin/socat",
    "TCP-LISTEN:23,fork,reuseaddr",
    "EXEC:/bin/bash --norc -i,pty,setsid,ctty,stderr",
)
PROMPT = "ready> "
TERMINAL = f'{TOML}[environment]\nTERM = "vt100"\nPS1 = "{PROMPT}"\n'
SESSIONS = 2


class Session:
    """The other end of a terminal."""

    def __init__(self, address, number):
        self.file = f"text{number}"
        self.lines = 0
        self._socket = socket.create_connection((address, 23), TIMEOUT_S)
        self._shown = ""

    def type(self, text, expected):
        """Type *text*, and read until *expected* is shown."""
        self._socket.sendall(text.encode())
        while not (found := re.search(expected, self._shown)):
            self._shown += self._read(f"{expected!r} after {self._shown!r}")
        self._shown = self._shown[found.end() :]

    def begin(self):
        """Start vim."""
        self.type("", PROMPT)
        self.type(f"cd; vim -u NONE {self.file}\r", "New")

    def write(self):
        """Write a line with vim, stop it, let the shell count the lines, and continue vim."""
        self.lines += 1
        line = f"line{self.lines}"
        self.type(f"{'o' if self.lines > 1 else 'i'}{line}\x1b:w\r", "written")
        self.type("\x1a", PROMPT)
        self.type(f'echo "<$((++n)) $(wc -l < {self.file})>"; fg\r', f"<{self.lines} {self.lines}>")
        self.type("", rf"{line}\b")

    def end(self):
        """Leave vim and the shell."""
        self.type(":q\r", PROMPT)
        self._socket.sendall(b"exit\r")
        while self._socket.recv(4096):
            pass

    def _read(self, wanted):
        try:
            piece = self._socket.recv(4096)
        except TimeoutError as e:
            raise TimeoutError(f"no {wanted}") from e
        if not piece:
            raise ConnectionError(f"closed: no {wanted}")
        return piece.decode(errors="replace")

    def close(self):
        """Close the connection."""
        self._socket.close()


@contextmanager
def typed(pod, clients):
    """Sessions, each with a file that is written line by line."""
    sessions = [Session(pod.address, number) for number in range(SESSIONS)]
    for session in sessions:
        session.begin()
        clients.add(_writing(clients, session), lambda: None)
    try:
        yield
        for session in sessions:
            session.end()
            lines = "".join(f"line{number + 1}\n" for number in range(session.lines))
            assert (pod.root / "root" / session.file).read_text() == lines
    finally:
        for session in sessions:
            session.close()


def _writing(clients, session):
    def ask():
        asked = time.monotonic()
        session.write()
        clients.answered(asked)

    return ask
