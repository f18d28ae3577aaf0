"""Real programs under load are checkpointed and restarted again and again, and nothing is lost.

Their clients are outside of the pod; their connections stay open, each answer is checked.
`make test-programs ROUNDS=20` does it for longer, and shows what was counted.
"""

import re
import statistics

import pytest

from examples.clients import Clients
from examples.exim.mail import wait_until
from tests.kernel.autopod.programs import databases, exim, shell, web
from tests.kernel.autopod.programs.program import EXAMPLES, Pod, Program, listens

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]


def example(name):
    """The configuration of an example's pod."""
    return (EXAMPLES / name / "pod.toml").read_text()


PYTHON = ("/usr/bin/python3", "-m", "http.server", "-p", "HTTP/1.1", "-d", "/var/www/html", "80")
REDIS = ("/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "")
PROGRAMS = {
    "exim": Program(
        "exim_root",
        ("/usr/sbin/exim4",),
        25,
        exim.delivered,
        exim.patient,
        example("exim"),
        "10.98.0.10",
    ),
    "apache": Program(
        "apache_root",
        ("/usr/sbin/apache2",),
        80,
        web.visited,
        web.apache,
        example("apache"),
        "10.98.0.20",
    ),
    "nginx": Program(
        "services_root", ("/usr/sbin/nginx", "-g", "daemon off;"), 80, web.visited, web.nginx
    ),
    "redis": Program(
        "services_root", REDIS, 6379, databases.written, toml=example("redis"), address="10.98.0.40"
    ),
    "postgresql": Program(
        "services_root", ("/bin/sh", "-ec", databases.POSTGRES), 5432, databases.benchmarked
    ),
    "python": Program("services_root", PYTHON, 80, web.visited, web.pages),
    "node": Program(
        "services_root", ("/usr/bin/node", "/root/counter.js"), 80, web.counted, web.node
    ),
    "vim": Program("services_root", shell.START, 23, shell.typed, toml=shell.TERMINAL),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_lost(host, request, rounds, name):
    program = PROGRAMS[name]
    pod = start(host, name, program, request.getfixturevalue(program.tree))
    clients = Clients()
    frozen = []
    try:
        with program.load(pod, clients):
            for _ in range(rounds):
                go_on(clients)
                frozen.append(restart(host, name))
            go_on(clients)
            seen = clients.end()
            assert not seen.failures
    except BaseException as e:
        e.add_note(f"after {len(frozen)} restarts; {host.log(name)[-2000:]}")
        raise
    finally:
        clients.end()
    median = statistics.median(frozen)
    print(f"{name}: {rounds} restarts, {seen.answers} answers, frozen {median:.0f} ms (median)")


def start(host, name, program, tree):
    """Start *program* in a pod of its own."""
    host.configure(name, program.toml)
    host.run("autopod", "add", name, "--base", tree)
    program.prepare(host.root(name))
    host.run("autopod", "addproc", name, *program.start)
    try:
        wait_until(lambda: listens(program.address, program.port), f"{name} listens")
    except TimeoutError as e:
        e.add_note(host.log(name))
        raise
    return Pod(host.root(name), tree, program.address)


def go_on(clients):
    """Wait until all are answered again."""
    enough = clients.seen.answers + 3 * len(clients)
    wait_until(lambda: clients.seen.failures or clients.seen.answers >= enough, "they go on")
    assert not clients.seen.failures


def restart(host, name):
    """Checkpoint the pod, which ends, and restart it; return how long it was frozen, in ms."""
    archive = host.prefix / f"{name}.pod"
    said = host.run("autopod", "checkpoint", name, "-o", archive)
    host.run("launcher", "ps", name, expect=1)  # it is gone
    host.run("autopod", "restart", name, "-i", archive)
    return float(re.search(r"frozen ([\d.]+) ms", said)[1])
