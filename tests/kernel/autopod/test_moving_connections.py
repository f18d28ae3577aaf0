"""Open connections move with their pod: two hosts on one switch, and a client beside them."""

import subprocess
import time
from pathlib import Path

import pytest

from examples import hosts
from examples.exim.mail import wait_until
from launcher import wall
from tests.kernel.autopod.test_migrate import pair  # noqa: F401 (a fixture)
from tests.kernel.ckpt import stream

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

TOML = '[network]\naddress = "10.98.7.10/24"\naddress6 = "fd98:7::10/64"\n'
ENOUGH = 200_000


@pytest.fixture
def client(pair):  # noqa: F811
    """The network namespace of a client: a path."""
    with hosts.switch(pair, "10.98.7.2/24", "fd98:7::2/64") as netns:
        yield netns


def serve(machine, debian_root):
    machine.configure("pod", TOML)
    machine.run("autopod", "add", "pod", "--base", debian_root)
    program = machine.root("pod") / "var/tmp/stream.py"
    program.write_text(Path(stream.__file__).read_text())
    machine.run("autopod", "addproc", "pod", "/usr/bin/python3", "/var/tmp/stream.py", "::", "4000")
    wait_until(lambda: "ready" in machine.run("launcher", "logs", "pod"), "it listens")


def migrate(source, target, clients):
    """Move the pod while the clients go on."""
    argv = source.command("autopod", "migrate", "pod", target.name)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as command:
        while command.poll() is None:
            for client in clients:
                client.step()
            time.sleep(stream.PAUSE_S)
        said = command.stdout.read().decode()
    assert command.returncode == 0, said
    return said


def connect(netns, count):
    with open(netns) as there, wall.inside(there.fileno()):
        return [stream.Client((host, 4000), count) for host in ("10.98.7.10", "fd98:7::10")]


def test_connections_move(pair, client, debian_root):  # noqa: F811
    a, b = pair
    serve(a, debian_root)
    four, six = clients = connect(client, 20)
    with four, six:
        for source, target in [(a, b), (b, a)]:
            for each in clients:
                each.run_until(ENOUGH)
            said = migrate(source, target, clients)
            for each in clients:
                each.run_until(ENOUGH)
            print(said, [f"longest gap {each.longest_gap * 1e3:.0f} ms" for each in clients])
        for each in clients:
            each.finish()
