"""A store in a file of this machine: SQLite, which the instances and processes of it share.

What a transaction has changed is on disk when it returns. Leases run by CLOCK_BOOTTIME, and end
with the boot. They end when somebody looks; nobody can see that they did not before.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from autopod.fleet.store import (
    Change,
    Compare,
    Delete,
    Entry,
    Event,
    FleetError,
    Forgotten,
    Lease,
    LeaseGone,
    Put,
    Snapshot,
    check_key,
    check_transaction,
    check_ttl,
)

_VERSION: Final = 1
_KEPT: Final = 10_000  # revisions of which what happened in them is kept
_BUSY_S: Final = 10.0
_LOOK_S: Final = 0.2
_BELOW: Final = "key >= ? AND key < ?"
_LAST: Final = "\U0010ffff"  # greater than all that a key can go on with
_SCHEMA: Final = """
CREATE TABLE state (revision INTEGER NOT NULL);
INSERT INTO state VALUES (1);
CREATE TABLE entry (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX entry_lease ON entry (lease) WHERE lease != 0;
CREATE TABLE event (
    revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, lease INTEGER NOT NULL
);
CREATE INDEX event_revision ON event (revision);
CREATE TABLE lease (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ttl_s REAL NOT NULL, ends REAL NOT NULL, boot TEXT NOT NULL
);
"""
# Not of a version of their own: who does not know them keeps them, too.
_INDEXES: Final = (
    "CREATE INDEX IF NOT EXISTS lease_ends ON lease (ends)",
    "CREATE INDEX IF NOT EXISTS lease_boot ON lease (boot)",
)

_T = TypeVar("_T")


class Sqlite:
    """A store in a file; see open()."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path, self._db = path, connection
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._one = trio.CapacityLimiter(1)  # a connection is used by one thread at a time

    @classmethod
    async def open(cls, path: Path) -> "Sqlite":
        """Open the store in *path*; make it where there is none.

        Raises:
            FleetError: it cannot be, or is another thing, or of a later version.
        """
        return cls(path, await trio.to_thread.run_sync(_open, path))

    async def get(self, key: str) -> Entry | None:
        """See store.Store.get()."""
        check_key(key)
        found = await self._run(lambda: self._entries("key = ?", key), write=False)
        return found[0] if found else None

    async def scan(self, prefix: str) -> Snapshot:
        """See store.Store.scan()."""
        check_key(prefix)

        def read() -> Snapshot:
            found = self._entries(_BELOW, prefix, prefix + _LAST)
            return Snapshot(self._revision(), found)

        return await self._run(read, write=False)

    async def keys(self, prefix: str) -> list[str]:
        """See store.Store.keys()."""
        return [row[0] for row in await self._select("key", prefix, "ORDER BY key")]

    async def count(self, prefix: str) -> int:
        """See store.Store.count()."""
        [[number]] = await self._select("COUNT(*)", prefix)
        return int(number)

    async def apply(self, compares: Sequence[Compare], changes: Sequence[Change]) -> int | None:
        """See store.Store.apply()."""
        check_transaction(compares, changes)

        def change() -> int | None:
            for compare in compares:
                there = self._entries("key = ?", compare.key)
                if (there[0].revision if there else 0) != compare.revision:
                    return None
            for one in changes:
                if isinstance(one, Put) and one.lease and not self._has(one.lease):
                    raise LeaseGone(f"lease {one.lease} has ended")
            return self._change(changes) if changes else self._revision()

        return await self._run(change)

    async def grant(self, ttl_s: float) -> Lease:
        """See store.Store.grant()."""
        ttl = check_ttl(ttl_s)

        def grant() -> Lease:
            row = self._db.execute(
                "INSERT INTO lease (ttl_s, ends, boot) VALUES (?, ?, ?) RETURNING id",
                (ttl, _now() + ttl, self._boot),
            ).fetchone()
            return Lease(row[0], ttl)

        return await self._run(grant)

    async def renew(self, lease: int) -> float:
        """See store.Store.renew()."""

        def renew() -> float:
            found = self._db.execute(
                "UPDATE lease SET ends = ? + ttl_s WHERE id = ? RETURNING ttl_s", (_now(), lease)
            ).fetchone()
            if found is None:
                raise LeaseGone(f"lease {lease} has ended")
            return float(found[0])

        return await self._run(renew)

    async def revoke(self, lease: int) -> None:
        """See store.Store.revoke()."""
        await self._run(lambda: self._end(lease))

    async def aclose(self) -> None:
        """See store.Store.aclose()."""
        async with self._one:
            self._db.close()

    async def feed(self, prefix: str, after: int, to: "trio.MemorySendChannel[Event]") -> None:
        """See store.Store.feed()."""
        while True:
            for event in await self._run(partial(self._events, after), write=False):
                if event.key.startswith(prefix):
                    await to.send(event)
                after = event.revision
            await trio.sleep(_LOOK_S)

    async def _run(self, do: Callable[[], _T], *, write: bool = True) -> _T:
        """Do something in a transaction of its own, in a thread; leases that are over end first."""

        def run() -> _T:
            try:
                if write or self._over():
                    with self._transaction("IMMEDIATE"):
                        for lease in self._over():
                            self._end(lease)
                        if write:
                            return do()
                with self._transaction("DEFERRED"):
                    return do()
            except sqlite3.Error as e:
                raise FleetError(f"{self._path}: {e}") from e

        return await trio.to_thread.run_sync(run, limiter=self._one)

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    async def _select(self, what: str, prefix: str, more: str = "") -> list[tuple[str]]:
        names = check_key(prefix), prefix + _LAST
        asked = f"SELECT {what} FROM entry WHERE {_BELOW} {more}"  # noqa: S608 (ours)
        return await self._run(lambda: self._db.execute(asked, names).fetchall(), write=False)

    def _revision(self) -> int:
        return int(self._db.execute("SELECT revision FROM state").fetchone()[0])

    def _entries(self, where: str, *arguments: str | int) -> list[Entry]:
        rows = self._db.execute(
            f"SELECT key, value, revision, lease FROM entry WHERE {where} ORDER BY key",  # noqa: S608 (ours)
            arguments,
        )
        return [Entry(*row) for row in rows]

    def _change(self, changes: Sequence[Change]) -> int:
        [revision] = self._db.execute(
            "UPDATE state SET revision = revision + 1 RETURNING revision"
        ).fetchone()
        for one in changes:
            if isinstance(one, Put):
                row = (one.key, one.value, revision, one.lease)
                self._db.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", row)
                self._log(revision, one.key, one.value, one.lease)
            elif self._db.execute("DELETE FROM entry WHERE key = ?", (one.key,)).rowcount:
                self._log(revision, one.key, None, 0)
        self._db.execute("DELETE FROM event WHERE revision <= ?", (revision - _KEPT,))
        return int(revision)

    def _log(self, revision: int, key: str, value: bytes | None, lease: int) -> None:
        self._db.execute("INSERT INTO event VALUES (?, ?, ?, ?)", (revision, key, value, lease))

    def _events(self, after: int) -> list[Event]:
        forgotten = self._revision() - _KEPT
        if after < forgotten:
            raise Forgotten(f"{self._path}: what happened before {forgotten} is not kept")
        rows = self._db.execute(
            "SELECT revision, key, value, lease FROM event WHERE revision > ? ORDER BY rowid",
            (after,),
        )
        return [
            Event(key, revision, None if value is None else Entry(key, value, revision, lease))
            for revision, key, value, lease in rows
        ]

    def _has(self, lease: int) -> bool:
        return bool(self._db.execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).fetchone())

    def _over(self) -> list[int]:
        """Return the leases whose time has come."""
        rows = self._db.execute(
            "SELECT id FROM lease WHERE ends <= ?"
            " UNION SELECT id FROM lease WHERE boot < ?"  # each by its index, as OR is not
            " UNION SELECT id FROM lease WHERE boot > ?",
            (_now(), self._boot, self._boot),
        )
        return [row[0] for row in rows]

    def _end(self, lease: int) -> None:
        keys = self._db.execute("SELECT key FROM entry WHERE lease = ?", (lease,)).fetchall()
        if keys and lease:
            self._change([Delete(key) for (key,) in keys])
        self._db.execute("DELETE FROM lease WHERE id = ?", (lease,))


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _alone(path):
            connection = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(connection)
            except BaseException:
                connection.close()
                raise
    except (sqlite3.Error, OSError) as e:
        raise FleetError(f"{path}: {e}", "fleet.file is a file of this machine's own disk") from e
    return connection


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Be the only one who opens it: who turns on the write-ahead log does not wait for others.

    A file that is there is opened by SQLite only: who closes any descriptor of it loses the locks
    on all, and with them the write-ahead log to who closes the file next (fcntl_locking(2)).
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if version > _VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, this is {_VERSION}")
    if version < _VERSION:
        for statement in filter(str.strip, _SCHEMA.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    for statement in _INDEXES:
        connection.execute(statement)
    connection.execute("COMMIT")


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
