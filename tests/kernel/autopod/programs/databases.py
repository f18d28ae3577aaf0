"""Databases: redis with many keys, and PostgreSQL below its own benchmark."""

import re
import signal
import subprocess
import time
from contextlib import contextmanager

from examples.clients import TIMEOUT_S
from examples.exim.mail import wait_until
from examples.redis.demo import Connection, count

KEYS = 100_000
WRITERS = 8
FILL = f"for i = 1, {KEYS} do redis.call('set', 'key:' .. i, i * 7) end"
SUM = f"local s = 0; for i = 1, {KEYS} do s = s + redis.call('get', 'key:' .. i) end; return s"

PGBENCH = ("-n", "-c8", "-j2", "-T1000000", "-P1")
POSTGRES = """
install -d -o postgres /tmp/db /run/postgresql
cd /tmp
exec setpriv --reuid postgres --regid postgres --clear-groups sh -ec '
bin=$(echo /usr/lib/postgresql/*/bin)
$bin/initdb --no-sync -D /tmp/db > /dev/null
echo host all all 10.98.0.0/16 trust >> /tmp/db/pg_hba.conf
exec $bin/postgres -D /tmp/db -h "*"'
"""
# What each transaction adds is added at four places: they must agree, and none may be missing.
SUMS = """
select count(*), sum(delta), (select sum(abalance) from pgbench_accounts),
    (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches)
from pgbench_history
"""


@contextmanager
def written(_pod, clients):
    """Clients that each count a number up, beside keys that stay as they are."""
    connection = Connection()
    connection.ask(f'EVAL "{FILL}" 0')
    for number in range(WRITERS):
        count(clients, f"counter{number}")
    clients.add(_reading(clients, connection), connection.close)
    yield
    connection = Connection()
    assert connection.ask(f'EVAL "{SUM}" 0') == f":{7 * KEYS * (KEYS + 1) // 2}"
    assert connection.ask("DBSIZE") == f":{KEYS + WRITERS}"
    connection.close()


def _reading(clients, connection):
    """Return what asks for one key after the other."""
    number = 0

    def ask():
        nonlocal number
        number = number % KEYS + 1
        asked = time.monotonic()
        answer = connection.ask(f"INCRBY key:{number} 0")
        if answer != f":{number * 7}":
            raise ValueError(f"key:{number} is {answer}")
        clients.answered(asked)
        clients.over.wait(0.005)

    return ask


@contextmanager
def benchmarked(pod, clients):
    """pgbench, outside of the pod, as the tree has it; its transactions are counted."""
    wait_until(lambda: not _tool(pod, "psql", "-c", "select")[0], "PostgreSQL answers")
    assert _tool(pod, "pgbench", "-iq", "-s2")[0] == 0
    argv = _argv(pod, "pgbench", *PGBENCH)
    with subprocess.Popen(argv, stdout=-1, stderr=-1, text=True) as bench:
        clients.add(_following(clients, bench), lambda: None)
        yield
        bench.send_signal(signal.SIGALRM)  # as if the time that -T gives were over
        said, trouble = bench.communicate(timeout=TIMEOUT_S)
    assert bench.returncode == 0, trouble
    done = re.search(r"actually processed: (\d+)", said)[1]
    sums = _tool(pod, "psql", "-tAc", SUMS)[1].strip().split("|")
    assert sums[0] == done
    assert len(set(sums[1:])) == 1, sums


def _following(clients, bench):
    """Return what reads a line of pgbench's progress."""

    def ask():
        asked = time.monotonic()
        line = bench.stderr.readline()
        said = re.match(r"progress: [\d.]+ s, ([\d.]+) tps, .*, 0 failed", line)
        if said is None:
            raise ValueError(f"pgbench: {line!r}")
        clients.answered(asked, int(float(said[1])))

    return ask


def _argv(pod, program, *arguments):
    """A program of PostgreSQL from the pod's tree, on the host, as a client of the pod."""
    (path,) = pod.tree.glob(f"usr/lib/postgresql/*/bin/{program}")
    inside = f"/{path.relative_to(pod.tree)}"
    return [
        "env",
        "PGDATABASE=postgres",
        "PGUSER=postgres",
        f"PGHOST={pod.address}",
        "chroot",
        pod.tree,
        inside,
        *arguments,
    ]


def _tool(pod, program, *arguments):
    """Run it; return its exit status and what it said."""
    argv = _argv(pod, program, *arguments)
    run = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return run.returncode, run.stdout + run.stderr
