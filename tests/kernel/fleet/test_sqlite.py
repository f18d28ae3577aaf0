"""What is SQLite's own: files that are none, boots, processes that are killed."""

import contextlib
import signal
import sqlite3
import subprocess
import sys

import pytest
import trio

from autopod.fleet.sqlite import Sqlite
from autopod.fleet.store import FleetError, Forgotten, Put

pytestmark = pytest.mark.slow

WRITER = """
import sys, trio
from pathlib import Path
from autopod.fleet.sqlite import Sqlite
from autopod.fleet.store import Compare, Put

async def main():
    store = await Sqlite.open(Path(sys.argv[1]))
    while True:
        entry = await store.get("/sum")
        value, revision = (int(entry.value), entry.revision) if entry else (0, 0)
        changes = [Put("/sum", b"%d" % (value + 1)), Put("/twin", b"%d" % (value + 1))]
        if await store.apply([Compare("/sum", revision)], changes):
            print(value + 1, flush=True)

trio.run(main)
"""


@contextlib.asynccontextmanager
async def opened(path):
    async with contextlib.aclosing(await Sqlite.open(path)) as store:
        yield store


async def test_what_is_no_store_is_left_as_it_is(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(b"something else, and long enough to be taken for a database" * 100)
    before = path.read_bytes()
    with pytest.raises(FleetError, match="not a database"):
        await Sqlite.open(path)
    assert path.read_bytes() == before
    with pytest.raises(FleetError, match=r"s a directory|unable to open"):
        await Sqlite.open(tmp_path)


async def test_one_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "fleet.db"
    async with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(FleetError, match="of version 99"):
        await Sqlite.open(path)


async def test_a_lease_does_not_survive_the_boot(tmp_path):
    async with opened(tmp_path / "fleet.db") as store:
        lease = await store.grant(600)
        await store.apply([], [Put("/here", b"", lease.id)])
        store._boot = "another one"
        assert await store.get("/here") is None


async def test_what_happened_too_long_ago_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("autopod.fleet.sqlite._KEPT", 10)
    async with opened(tmp_path / "fleet.db") as store:
        for _ in range(20):
            await store.apply([], [Put("/a", b"")])
        with pytest.raises(Forgotten):
            await store.feed("/a", 1, None)


@pytest.mark.parametrize(
    ("ask", "table"), [("scan", "entry"), ("get", "lease"), ("renew", "lease")]
)
async def test_no_table_is_read_as_a_whole(tmp_path, ask, table):
    """Not even one that an earlier version has made without all indexes."""
    async with opened(tmp_path / "fleet.db") as store:
        lease = await store.grant(600)
    with contextlib.closing(sqlite3.connect(tmp_path / "fleet.db")) as connection:
        for index in ("lease_ends", "lease_boot"):
            connection.execute(f"DROP INDEX IF EXISTS {index}")
    async with opened(tmp_path / "fleet.db") as store:
        asked = []
        store._db.set_trace_callback(asked.append)
        await getattr(store, ask)(lease.id if ask == "renew" else "/a")
        store._db.set_trace_callback(None)
        for statement in asked:
            if statement.startswith(("SELECT", "UPDATE")):
                for *_, how in store._db.execute(f"EXPLAIN QUERY PLAN {statement}"):
                    assert f"SCAN {table}" not in how, statement


def test_processes_that_share_it_are_killed_and_nothing_is_half_done(tmp_path):
    path, told = tmp_path / "fleet.db", []
    for _ in range(3):
        argv = [sys.executable, "-c", WRITER, path]
        pair = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for process in pair:
            told += [int(process.stdout.readline()) for _ in range(10)]
        for process in pair:
            process.send_signal(signal.SIGKILL)
            told += map(int, process.stdout.read().splitlines())
            process.wait()
            process.stdout.close()
    assert len(set(told)) == len(told) >= 60
    with contextlib.closing(sqlite3.connect(path)) as connection:
        values = dict(connection.execute("SELECT key, value FROM entry"))
        assert values["/sum"] == values["/twin"]
        assert max(told) <= int(values["/sum"]) <= len(told) + 6
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


OTHER = """
import sys, trio
from contextlib import aclosing
from pathlib import Path
from autopod.fleet.sqlite import Sqlite
from autopod.fleet.store import Put

async def main():
    async with aclosing(await Sqlite.open(Path(sys.argv[1]))) as store:
        print([entry.key for entry in (await store.scan("/a")).entries])
        await store.apply([], [Put("/b", b"")])

trio.run(main)
"""


async def test_who_opens_it_twice_does_not_lose_it_to_who_closes_it_last(tmp_path):
    """Who closes any descriptor of a file loses all locks that he has on it: fcntl_locking(2)."""
    path = tmp_path / "fleet.db"
    seen = []
    async with opened(path) as store:
        async with opened(path):
            pass
        for number in range(3):
            await store.apply([], [Put(f"/a{number}", b"")])
            argv = [sys.executable, "-c", OTHER, path]
            run = await trio.run_process(argv, capture_stdout=True)
            seen.append(run.stdout.decode().strip())
    assert seen == ["['/a0']", "['/a0', '/a1']", "['/a0', '/a1', '/a2']"]
