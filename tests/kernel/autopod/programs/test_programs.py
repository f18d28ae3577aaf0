"""Real programs under load are restarted and moved again and again, and nothing is lost.

Their clients are outside of the pod; their connections stay open, each answer is checked.
`make test-programs ROUNDS=20` does it for longer, and shows what was counted.
"""

import re
import statistics
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples import hosts
from examples.clients import Clients
from examples.exim.mail import wait_until
from examples.moving import CLIENT
from launcher import wall
from tests.kernel.autopod.programs.program import Pod, listens
from tests.kernel.autopod.programs.table import PROGRAMS
from tests.kernel.autopod.test_migrate import pair  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.long]


def pytest_generate_tests(metafunc):
    """All are restarted and moved; if only once, some are left to the demonstrations."""
    few = metafunc.function is test_moved and metafunc.config.getoption("rounds") == 1
    metafunc.parametrize("name", ["exim", "postgresql", "vim"] if few else PROGRAMS)


def test_restarted(host, request, rounds, name):
    tree = request.getfixturevalue(PROGRAMS[name].tree)
    frozen = []

    def restart():
        archive = host.prefix / f"{name}.pod"
        said = host.run("autopod", "checkpoint", name, "-o", archive)
        host.run("launcher", "ps", name, expect=1)  # it is gone
        host.run("autopod", "restart", name, "-i", archive)
        frozen.append(float(re.search(r"frozen ([\d.]+) ms", said)[1]))

    with under_load(name, host, tree) as clients:
        for _ in range(rounds):
            restart()
            go_on(clients)
    print(f"{name}: {rounds} restarts, frozen {statistics.median(frozen):.0f} ms (median)")


def test_moved(pair, request, rounds, name):  # noqa: F811
    tree = request.getfixturevalue(PROGRAMS[name].tree)
    a, b = pair
    pauses = []

    def move(source, target):
        clients.take_slowest()
        source.run("autopod", "migrate", name, target.name)
        go_on(clients)
        pauses.append(clients.take_slowest())
        assert target.living(name)
        assert not source.living(name)

    with client_of(pair), under_load(name, a, tree) as clients:
        for _ in range(rounds):
            move(a, b)
            move(b, a)
    median = statistics.median(pauses) * 1e3
    print(f"{name}: {len(pauses)} moves, longest wait {median:.0f} ms (median)")


@contextmanager
def client_of(machines):
    """Be at a third host for a while, beside the pods of *machines*."""
    with (
        hosts.switch(machines, CLIENT) as netns,
        open(netns) as there,
        wall.inside(there.fileno()),
    ):
        yield


@contextmanager
def under_load(name, host, tree):
    """Start the program in a pod, and its clients; at the end all must be right.

    Yields:
        The clients.
    """
    program = PROGRAMS[name]
    clients = Clients()
    try:
        pod = start(host, name, program, tree)
        with program.load(pod, clients):
            go_on(clients)
            yield clients
            seen = clients.end()
            assert not seen.failures
    except BaseException as e:
        e.add_note(host.run("launcher", "logs", name, expect=None)[-2000:])
        raise
    finally:
        seen = clients.end()
    print(f"{name}: {seen.answers} answers")


def start(host, name, program, tree):
    """Start *program* in a pod of its own."""
    host.configure(name, program.toml)
    host.run("autopod", "add", name, "--base", tree)
    program.prepare(host.root(name))
    host.run("autopod", "addproc", name, *program.start)
    wait_until(lambda: listens(program.address, program.port), f"{name} listens")
    return Pod(host.root(name), Path(tree), program.address)


def go_on(clients):
    """Wait until each is answered again, also what it has asked since."""
    before = clients.heard()

    def all_do():
        more = clients.heard() - before
        return clients.seen.failures or sum(n > 1 for n in more.values()) == len(clients)

    wait_until(all_do, "they go on")
    assert not clients.seen.failures
