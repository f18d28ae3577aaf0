"""The programs that are checkpointed: how each is started, and how to see that it goes on."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from examples.exim import mail

EXAMPLES = Path(__file__).parent.parent / "examples"
CONNECTIONS = 10
KEYS = 100_000

# Random letters, as frequent as those of a text: no two pages are alike, and zstd makes 1 of 1.9.
MEMORY = """
import os, time
often = "etaoinshrdlu " * 12 + "cmfwypvbgkjqxz" * 7
table = (often[:256]).ljust(256, "e").encode()
kept = bytearray({mib} << 20)
for at in range(0, len(kept), 1 << 20):
    kept[at : at + (1 << 20)] = os.urandom(1 << 20).translate(table)
print("ready", flush=True)
time.sleep(1e6)
"""


class Talk:
    """Connections of clients to a program, kept over checkpoint and restart."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def begin(self, address: tuple[str, int], count: int) -> None:
        """Open *count* connections."""
        self.end()
        self._open = [socket.create_connection(address, 20) for _ in range(count)]

    def ask(self, request: bytes, answer: bytes) -> bool:
        """Send *request* on each; return whether *answer* begins what comes back on all."""
        for one in self._open:
            one.sendall(request)
        return all(one.recv(1 << 16).startswith(answer) for one in self._open)

    def end(self) -> None:
        """Close them."""
        for one in self._open:
            one.close()
        self._open = []


@dataclass(frozen=True)
class Program:
    """A program to checkpoint.

    Attributes:
        name: of its row.
        pod: name of its pod; of its example, too, if it has one.
        tree: which of the root trees it lives in.
        argv: the program.
        fill: brings it to the state that is checkpointed, once it answers.
        answers: does it answer at this address?
        begin: before a checkpoint; the talk lives on over it.
        goes_on: after a restart: is the talk as it was?
        quiet: says itself, in what it prints, that it is ready.
    """

    name: str
    pod: str
    tree: str
    argv: tuple[str, ...]
    fill: Callable[[str], None] = lambda _: None
    answers: Callable[[str], bool] = lambda _: True
    begin: Callable[[Talk, str], None] = lambda _talk, _address: None
    goes_on: Callable[[Talk], bool] = lambda _: True
    says: str = ""
    talk: Talk = field(default_factory=Talk)

    @property
    def settings(self) -> Path:
        """The configuration of its pod, if its example has one."""
        return EXAMPLES / self.pod / "pod.toml"


def programs() -> list[Program]:
    """Return them in the order of the table."""
    return [
        Program("sleep", "sleep", "debian", ("/bin/sleep", "1000000")),
        Program("exim4", "exim", "exim", ("/usr/sbin/exim4", "-bd", "-q30m"), answers=mail.answers),
        Program(
            f"apache2, {CONNECTIONS} connections", "apache", "apache",
            ("/usr/sbin/apache2", "-c", "KeepAliveTimeout 600"),
            answers=lambda address: _connects(address, 80), begin=_browse, goes_on=_page_comes,
        ),
        Program(
            f"redis, {KEYS:,} keys", "redis", "redis",
            ("/usr/bin/redis-server", "/etc/redis/redis.conf"),
            fill=_set_keys, answers=lambda address: _connects(address, 6379),
            begin=_count_keys, goes_on=_has_keys,
        ),
        _python("memory", 200),
        _python("gib", 1024),
    ]  # fmt: skip


def _python(pod: str, mib: int) -> Program:
    argv = ("/usr/bin/python3", "-c", MEMORY.format(mib=mib))
    return Program(f"Python, {mib} MiB", pod, "debian", argv, says="ready")


def _connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 5).close()
    except OSError:
        return False
    return True


def _browse(talk: Talk, address: str) -> None:
    talk.begin((address, 80), CONNECTIONS)
    if not _page_comes(talk):
        raise RuntimeError("the web server does not answer")


def _page_comes(talk: Talk) -> bool:
    return talk.ask(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n", b"HTTP/1.1 200")


def _set_keys(address: str) -> None:
    """Keys of 100 bytes each."""
    with socket.create_connection((address, 6379), 20) as redis:
        answers = redis.makefile("rb")
        for first in range(0, KEYS, 1000):
            lines = [
                f"SET key:{n} {f'{n:08d}' * 12}{n % 10000:04d}\r\n"
                for n in range(first, first + 1000)
            ]
            redis.sendall("".join(lines).encode())
            for _ in lines:
                if answers.readline() != b"+OK\r\n":
                    raise RuntimeError("a key was not set")


def _count_keys(talk: Talk, address: str) -> None:
    talk.begin((address, 6379), 1)
    if not _has_keys(talk):
        raise RuntimeError("redis lacks keys")


def _has_keys(talk: Talk) -> bool:
    return talk.ask(b"DBSIZE\r\n", f":{KEYS}\r\n".encode())
