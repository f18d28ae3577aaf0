"""A program that lives in a pod, and its clients: what the table of programs consists of."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from examples.clients import TIMEOUT_S, Clients

EXAMPLES = Path(__file__).parents[4] / "examples"
ADDRESS = "10.98.0.50"
TOML = f'[network]\naddress = "{ADDRESS}/16"\n'


@dataclass(frozen=True, slots=True)
class Pod:
    """Where a running program is: its pod's root, the tree below that, its address."""

    root: Path
    tree: Path
    address: str


@dataclass(frozen=True, slots=True)
class Program:
    """A program, and who uses it.

    Attributes:
        tree: the fixture that has its root tree.
        start: its command line, in the pod.
        port: where it listens.
        load: adds clients and yields; when that is left, they are done, and it looks whether all
            that they were told is there.
        prepare: called with the pod's root before the program is started.
        toml: the pod's configuration.
        address: the pod's, as it stands there.
    """

    tree: str
    start: tuple[str, ...]
    port: int
    load: Callable[[Pod, Clients], AbstractContextManager[None]]
    prepare: Callable[[Path], None] = lambda _root: None
    toml: str = TOML
    address: str = ADDRESS


def put(root, files):
    """Make *files* (content by path) below *root*, for everybody to read."""
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())


def listens(address, port):
    """Return whether connections are accepted there."""
    try:
        socket.create_connection((address, port), TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    return True
