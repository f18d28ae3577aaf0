"""Clients of a web server that notice everything: browsers that stay connected, and downloads.

They go on until they are told to end. Whatever is not as it should be is kept as a failure: an
answer other than the right one, a connection that was closed.
"""

import hashlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

TIMEOUT_S = 60.0
PIECE = 1 << 16


@dataclass(slots=True)
class Seen:
    """What clients have seen so far.

    Attributes:
        answers: how many pages were right.
        downloads: how many downloads were whole.
        slowest_s: the longest that anybody has waited, for an answer or for more of a download.
        failures: what went wrong.
    """

    answers: int = 0
    downloads: int = 0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


class Load:
    """Threads with a connection each, that ask for pages or download something big."""

    def __init__(self, address: str, page: bytes, content: bytes) -> None:
        """Nothing is asked for yet.

        Args:
            address: of the server.
            page: what `/` must be.
            content: what `/big` must be.
        """
        self._address, self._page, self._content = address, page, content
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.seen = Seen()

    def start(self, browsers: int, pause_s: float, downloads: int, rate: float) -> None:
        """Connect, in the network namespace of the calling thread, and begin.

        Args:
            browsers: how many connections are kept alive.
            pause_s: how long each of them pauses between two requests.
            downloads: how many download the big file again and again.
            rate: of one download, in bytes per second.

        Raises:
            OSError: the server cannot be reached.
        """
        works = [lambda c: self._browse(c, pause_s)] * browsers
        works += [lambda c: self._download(c, rate)] * downloads
        for work in works:
            connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
            connection.connect()
            thread = threading.Thread(target=self._run, args=(work, connection))
            self._threads.append(thread)
            thread.start()

    def take_slowest(self) -> float:
        """Return how long somebody has waited at most since the last call, in seconds."""
        with self._lock:
            slowest, self.seen.slowest_s = self.seen.slowest_s, 0.0
        return slowest

    def end(self) -> Seen:
        """Let what was begun be finished; return what was seen."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        return self.seen

    def _run(
        self, work: Callable[[http.client.HTTPConnection], None], c: http.client.HTTPConnection
    ) -> None:
        name = c.sock.getsockname()
        try:
            while not self._over.is_set():
                work(c)
                if c.sock is None or c.sock.getsockname() != name:
                    raise ConnectionError("the server has closed the connection")
        except (OSError, http.client.HTTPException, ValueError) as e:
            with self._lock:
                self.seen.failures.append(f"{type(e).__name__}: {e}")
        finally:
            c.close()

    def _waited(self, since: float) -> float:
        """Note the time since *since*; return the time now."""
        now = time.monotonic()
        with self._lock:
            self.seen.slowest_s = max(self.seen.slowest_s, now - since)
        return now

    def _browse(self, connection: http.client.HTTPConnection, pause_s: float) -> None:
        asked = time.monotonic()
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read()
        self._waited(asked)
        if answer.status != 200 or body != self._page:
            raise ValueError(f"a wrong page: status {answer.status}, {len(body)} bytes")
        with self._lock:
            self.seen.answers += 1
        self._over.wait(pause_s)

    def _download(self, connection: http.client.HTTPConnection, rate: float) -> None:
        connection.request("GET", "/big")
        digest, length = hashlib.sha256(), 0
        began = time.monotonic()
        for piece in self._pieces(connection.getresponse()):
            digest.update(piece)
            length += len(piece)
            if not self._over.is_set():
                self._over.wait(max(0.0, began + length / rate - time.monotonic()))
        if digest.digest() != hashlib.sha256(self._content).digest():
            raise ValueError(f"a wrong download: {length} bytes")
        with self._lock:
            self.seen.downloads += 1

    def _pieces(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            asked = time.monotonic()
            piece = answer.read(PIECE)
            self._waited(asked)
            if not piece:
                return
            yield piece
