"""Web servers: connections that are kept alive, slow downloads, a program that counts."""

import random
from contextlib import contextmanager
from pathlib import Path

from examples.apache import load
from tests.kernel.autopod.programs.program import put

COUNTER = Path(__file__).with_name("counter.js")
PAUSE_S = 0.03
BROWSERS, DOWNLOADS, COUNTERS = 8, 2, 8
PAGE = random.Random(1).randbytes(50_000)
BIG = random.Random(2).randbytes(3_000_000)
RATE = 1e6  # bytes per second

NGINX = """
error_log stderr;
worker_processes 2;
events {}
http {
    keepalive_requests 1000000;
    keepalive_timeout 300;
    send_timeout 300;
    server { root /var/www/html; }
}
"""
APACHE = "KeepAliveTimeout 300\nMaxKeepAliveRequests 0\nTimeout 300\n"


def pages(root):
    """Put the pages there."""
    put(root, {"var/www/html/index.html": PAGE, "var/www/html/big": BIG})


@contextmanager
def visited(pod, clients):
    """Browsers, and downloads that last for some seconds."""
    for _ in range(BROWSERS):
        load.browse(clients, pod.address, PAGE, PAUSE_S)
    for _ in range(DOWNLOADS):
        load.download(clients, pod.address, BIG, RATE)
    yield


@contextmanager
def counted(pod, clients):
    """Clients that each count; at the end the file has each number once."""
    told = {f"/{number}": 0 for number in range(COUNTERS)}
    for name in told:
        _count(pod, clients, name, told)
    yield
    lines = (pod.root / "root/counts").read_text().splitlines()
    assert sorted(lines) == sorted(f"{k} {i}" for k, n in told.items() for i in range(1, n + 1))


def _count(pod, clients, name, told):
    connection = load.Connection(pod.address, clients)

    def ask():
        told[name] += 1
        answer = b"".join(connection.get(name))
        if answer != b"%d" % told[name]:
            raise ValueError(f"{name} is {answer!r} where it must be {told[name]}")
        clients.over.wait(PAUSE_S)

    clients.add(ask, connection.close)


def apache(root):
    """Make Apache patient, so that a closed connection is always a failure."""
    pages(root)
    with (root / "etc/apache2/apache2.conf").open("a") as file:
        file.write(APACHE)


def nginx(root):
    """The same for nginx."""
    pages(root)
    put(root, {"etc/nginx/nginx.conf": NGINX})


def node(root):
    """Put the program there."""
    put(root, {"root/counter.js": COUNTER.read_text()})
