"""Clients of the web server: browsers that stay connected, and downloads."""

import hashlib
import http.client
import time
from collections.abc import Iterator

from examples.clients import TIMEOUT_S, Clients

PIECE = 1 << 16


class Connection:
    """A connection that must never be closed by the server."""

    def __init__(self, address: str, clients: Clients, timeout_s: float = TIMEOUT_S) -> None:
        """Connect, in the network namespace of the calling thread.

        Raises:
            OSError: the server cannot be reached.
        """
        self._http = http.client.HTTPConnection(address, timeout=timeout_s)
        self._http.connect()
        self._clients = clients
        self.close = self._http.close

    def get(self, path: str) -> Iterator[bytes]:
        """Ask for *path* and yield the body piece by piece.

        Raises:
            OSError: the connection was closed.
            ValueError: the answer is an error.
        """
        asked = time.monotonic()
        try:
            self._http.request("GET", path)
            answer = self._http.getresponse()
            if answer.status != http.client.OK:
                raise ValueError(f"{path}: status {answer.status}")
            while piece := answer.read(PIECE):
                self._clients.answered(asked, 0)
                yield piece
                asked = time.monotonic()
        except http.client.HTTPException as e:
            raise ConnectionError(f"{path}: {type(e).__name__}: {e}") from e
        self._clients.answered(asked)
        if self._http.sock is None:
            raise ConnectionError("the server wants to close the connection")


def browse(
    clients: Clients, address: str, page: bytes, pause_s: float, timeout_s: float = TIMEOUT_S
) -> None:
    """Add a client that asks for `/`, which must be *page*, and pauses between two requests."""
    connection = Connection(address, clients, timeout_s)

    def ask() -> None:
        body = b"".join(connection.get("/"))
        if body != page:
            raise ValueError(f"a wrong page of {len(body)} bytes")
        clients.over.wait(pause_s)

    clients.add(ask, connection.close)


def download(
    clients: Clients, address: str, content: bytes, rate: float, timeout_s: float = TIMEOUT_S
) -> None:
    """Add a client that reads `/big`, which must be *content*, at *rate* bytes per second."""
    connection = Connection(address, clients, timeout_s)
    right = hashlib.sha256(content).digest()

    def ask() -> None:
        digest, length, began = hashlib.sha256(), 0, time.monotonic()
        for piece in connection.get("/big"):
            digest.update(piece)
            length += len(piece)
            clients.over.wait(max(0.0, began + length / rate - time.monotonic()))
        if digest.digest() != right:
            raise ValueError(f"a wrong download of {length} bytes")

    clients.add(ask, connection.close)
