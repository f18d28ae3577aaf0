"""`make demo-redis`: a database moves from host to host while clients write to it.

Each client counts in the database, and knows what the answer must be: a write that was lost or done
twice is seen at once.
"""

import socket
import sys
import time
from collections.abc import Callable

from examples import moving
from examples.clients import TIMEOUT_S, Clients

ADDRESS = ("10.98.0.40", 6379)
PAUSE_S = 0.01


class Connection:
    """Speaks RESP, the protocol of Redis, as far as a counter needs it."""

    def __init__(self) -> None:
        """Connect, in the network namespace of the calling thread.

        Raises:
            OSError: the server cannot be reached.
        """
        self._socket = socket.create_connection(ADDRESS, TIMEOUT_S)
        self._answers = self._socket.makefile("rb")

    def ask(self, command: str) -> str:
        """Send an inline command; return the line that answers it.

        Raises:
            OSError: the connection was closed.
        """
        self._socket.sendall(command.encode() + b"\r\n")
        line = self._answers.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server has closed the connection")
        return line.decode().rstrip()

    def close(self) -> None:
        """Close it."""
        self._answers.close()
        self._socket.close()


def count(clients: Clients, name: str) -> None:
    """Add a client that counts *name* up, and checks each answer."""
    connection = Connection()
    clients.add(counting(clients, connection, name), connection.close)


def counting(clients: Clients, connection: Connection, name: str) -> Callable[[], None]:
    """Return what such a client does each time."""
    expected = 0

    def ask() -> None:
        nonlocal expected
        expected += 1
        asked = time.monotonic()
        answer = connection.ask(f"INCR {name}")
        clients.answered(asked)
        if answer != f":{expected}":
            raise ValueError(f"{name} is {answer} where it must be {expected}")
        clients.over.wait(PAUSE_S)

    return ask


def service(writers: int) -> moving.Service:
    """Return the database with so many clients."""

    def connect(clients: Clients) -> None:
        first = Connection()
        answer = first.ask("PING")
        first.close()
        if answer.startswith("-LOADING"):  # what it wrote down when it was stopped
            raise ConnectionRefusedError(answer)
        for number in range(writers):
            count(clients, f"counter{number}")

    return moving.Service("redis", "/usr/bin/redis-server", lambda _: None, connect, writers)


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = moving.parser("examples.redis.demo", __doc__ or "")
    parser.add_argument("--writers", type=int, default=20, metavar="N", help="clients (20)")
    options = parser.parse_args()
    title = "AutoPod: a database moves between two hosts, and its clients go on writing."
    return moving.main(title, service(options.writers), options.moves)


if __name__ == "__main__":
    sys.exit(main())
