"""The service's memory: `/var/lib/autopod/autopod.db`, SQLite. What is written there is on disk."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from launcher.places import Places

_VERSION: Final = 1
_KEPT: Final = 1000
_SCHEMA: Final = """
CREATE TABLE report (at TEXT NOT NULL, level TEXT NOT NULL, said TEXT NOT NULL);
CREATE TABLE event (at TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE drain (id TEXT PRIMARY KEY, at TEXT NOT NULL, record TEXT NOT NULL);
"""

Phase = Literal[
    "stopping", "installing", "confirming", "ready", "rebooting", "returning", "undoing",
    "done", "failed",
]  # fmt: skip

ENDED: Final = frozenset({"done", "failed"})


class PodRecord(msgspec.Struct, frozen=True):
    """A pod that ran when a drain began.

    Attributes:
        pod: its name.
        place: "here": it runs as it did; "ended": it had ended by itself; "archive": it is in its
            archive; "moved": at *host*; "back": it runs again; "lost": it could not be brought
            back, its archive is kept.
        host: where it has been moved to.
        why: it could not be brought back.
    """

    pod: str
    place: Literal["here", "ended", "archive", "moved", "back", "lost"] = "here"
    host: str | None = None
    why: str | None = None


class Drain(msgspec.Struct, frozen=True):
    """How far a drain has come: all that is needed to go on with it.

    Attributes:
        id: names it.
        phase: what is to be done next.
        automatic: it goes on to the reboot by itself.
        wanted: why.
        boot_id: of the boot in which it began.
        packages: to install, `NAME=VERSION`.
        expected: the kernel that is to run after the boot; None: it does not matter.
        pods: what has become of them.
        reboots: how often the reboot was ordered.
        failed: why it failed; None: it has not.
    """

    id: str
    phase: Phase
    automatic: bool
    wanted: list[str]
    boot_id: str
    packages: list[str]
    expected: str | None
    pods: list[PodRecord]
    reboots: int = 0
    failed: str | None = None


class Store:
    """An open database; see opened()."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def add_report(self, at: datetime, level: str, said: str) -> None:
        """Keep a report, as JSON; old ones go."""
        with self._db:
            self._db.execute("INSERT INTO report VALUES (?, ?, ?)", (at.isoformat(), level, said))
            self._db.execute(
                "DELETE FROM report WHERE rowid <= (SELECT max(rowid) FROM report) - ?", (_KEPT,)
            )

    def add_event(self, kind: str, text: str) -> None:
        """Write down that something has happened."""
        with self._db:
            self._event(kind, text)

    def events(self) -> list[tuple[str, str, str]]:
        """Return what has happened: when, what kind, in words; the oldest first."""
        return self._db.execute("SELECT at, kind, text FROM event ORDER BY rowid").fetchall()

    def save(self, drain: Drain) -> None:
        """Write down how far a drain has come."""
        with self._db:
            self._db.execute(
                "INSERT INTO drain VALUES (?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                (drain.id, _now(), msgspec.json.encode(drain).decode()),
            )
            self._event("drain", f"{drain.id}: {drain.phase}")

    def last_drain(self) -> Drain | None:
        """Return the newest drain, ended or not."""
        row = self._db.execute("SELECT record FROM drain ORDER BY rowid DESC LIMIT 1").fetchone()
        return msgspec.json.decode(row[0], type=Drain) if row else None

    def _event(self, kind: str, text: str) -> None:
        self._db.execute("INSERT INTO event VALUES (?, ?, ?)", (_now(), kind, text))


def path(places: Places) -> Path:
    """Return where the instance's database is."""
    return places.states() / "autopod.db"


@contextmanager
def opened(places: Places) -> Iterator[Store]:
    """Open the instance's database; make it where there is none.

    A write-ahead log that is synced at each commit: what was written survives a loss of power.

    Raises:
        sqlite3.Error: it is not one, or of a later version.
    """
    places.states().mkdir(mode=0o755, parents=True, exist_ok=True)
    connection = sqlite3.connect(path(places), timeout=30)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _prepare(connection)
        yield Store(connection)
    finally:
        connection.close()


def _prepare(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise sqlite3.DatabaseError(f"autopod.db is of version {version}, this is {_VERSION}")
        if version < _VERSION:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
