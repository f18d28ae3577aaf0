"""Migrations: how long a pod is down, and how long its client waits at most.

A program with 1 GiB in memory rewrites 50 MiB of it each second, and answers a client who asks
again as soon as it has an answer. Two hosts and the client's are network namespaces.
"""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.programs import MEMORY
from examples import hosts
from examples.clients import Clients
from examples.exim import mail
from launcher import wall

MOVES, SIZES = 10, (16, 1024)
HEADING = ("memory", "down, ms", "longest wait, ms", "in all, ms", "sent, MiB")
_ADDRESS, _PORT, _CLIENT = "10.98.0.50", 5000, "10.98.0.2/16"
_PROGRAM = (
    MEMORY.rpartition("print")[0]
    + f"PORT = {_PORT}"
    + """
SIZE = {mib}
import socket, threading
def rewrite():
    at, due = 0, time.monotonic()
    while SIZE > 16:
        kept[at : at + (1 << 20)] = os.urandom(1 << 20).translate(table)
        at = (at + (1 << 20)) % len(kept)
        due = max(due + 1 / 50, time.monotonic() - 1)
        time.sleep(max(0, due - time.monotonic()))
threading.Thread(target=rewrite).start()
here = socket.create_server(("", PORT))
while True:
    client, _ = here.accept()
    while question := client.recv(1):
        client.sendall(question)
"""
)


def measure(root: Path, moves: int = MOVES) -> list[tuple[str, ...]]:
    """Return the table, as lines of cells: medians, and the range."""
    lines = [HEADING]
    for mib in SIZES:
        with hosts.pair() as machines, hosts.switch(machines, _CLIENT) as netns:
            found = _measure(machines, netns, root, mib, moves)
        cells = (
            f"{statistics.median(one):.0f} ({min(one):.0f} - {max(one):.0f})"
            for one in zip(*found, strict=True)
        )
        lines.append((f"{mib} MiB", *cells))
    return lines


def _measure(
    machines: tuple[hosts.Machine, hosts.Machine], netns: str, root: Path, mib: int, moves: int
) -> list[tuple[float, ...]]:
    source, target = machines
    source.configure("moved", f'[network]\naddress = "{_ADDRESS}/16"\n')
    source.run("autopod", "add", "moved", "--base", root)
    source.run("autopod", "addproc", "moved", "/usr/bin/python3", "-c", _PROGRAM.format(mib=mib))
    found = []
    with _client(netns) as clients:
        for _ in range(moves):
            before = clients.seen.answers
            mail.wait_until(lambda: clients.seen.answers > before, "the program answers")  # noqa: B023
            clients.take_slowest()
            said = source.run("autopod", "migrate", "moved", target.name)
            before = clients.seen.answers
            mail.wait_until(lambda: clients.seen.answers > before, "it answers again")  # noqa: B023
            found.append((*_numbers(said)[:1], 1e3 * clients.take_slowest(), *_numbers(said)[1:]))
            source, target = target, source
    if clients.seen.failures:
        raise RuntimeError(clients.seen.failures[0])
    return found


def _numbers(said: str) -> tuple[float, float, float]:
    """Return what `autopod migrate` says: down and in all, ms; sent, MiB."""
    words = said[said.index("; down ") :].split()
    unit = {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024}[words[9]]
    return float(words[2]), float(words[5]), float(words[8]) * unit


@contextlib.contextmanager
def _client(netns: str) -> Iterator[Clients]:
    clients = Clients()
    with open(netns) as there, wall.inside(there.fileno()):
        mail.wait_until(lambda: _connected(clients), "the program listens")
    try:
        yield clients
    finally:
        clients.end()


def _connected(clients: Clients) -> bool:
    try:
        connection = socket.create_connection((_ADDRESS, _PORT), 60)
    except OSError:
        return False

    def ask() -> None:
        asked = time.monotonic()
        connection.sendall(b"?")
        if connection.recv(1) != b"?":
            raise ValueError("no answer")
        clients.answered(asked)
        threading.Event().wait(0.002)

    clients.add(ask, connection.close)
    return True
