"""The service's memory: `/var/lib/autopod/autopod.db`, SQLite. What is written there is on disk."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from launcher.places import Places

_KEPT: Final = 1000
_SCHEMAS: Final = (
    """
CREATE TABLE report (at TEXT NOT NULL, level TEXT NOT NULL, said TEXT NOT NULL);
CREATE TABLE event (at TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE drain (id TEXT PRIMARY KEY, at TEXT NOT NULL, record TEXT NOT NULL);
""",
    """
CREATE TABLE hold (at TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE receiver (name TEXT PRIMARY KEY, seen INTEGER NOT NULL);
CREATE TABLE notice (
    receiver TEXT NOT NULL, event INTEGER NOT NULL, at TEXT NOT NULL, kind TEXT NOT NULL,
    text TEXT NOT NULL, tries INTEGER NOT NULL, due REAL NOT NULL, failed TEXT,
    what TEXT, PRIMARY KEY (receiver, event)
);
ALTER TABLE event ADD COLUMN drain TEXT;
ALTER TABLE event ADD COLUMN pod TEXT;
ALTER TABLE event ADD COLUMN what TEXT;
""",
)
"""What each version adds to the one before it."""

Phase = Literal[
    "asking", "stopping", "installing", "confirming", "ready", "rebooting", "returning", "undoing",
    "done", "failed", "put off",
]  # fmt: skip

ENDED: Final = frozenset({"done", "failed", "put off"})


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

    @property
    def words(self) -> str:
        """Where it is, for people."""
        places = {
            "here": "runs",
            "ended": "has ended by itself",
            "archive": "on disk until after the boot",
            "moved": f"at {self.host}",
            "back": "runs again",
            "lost": f"did not come back: {self.why}",
        }
        return f"pod {self.pod}: {places[self.place]}"


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
        slot: the group of which it may have a reboot slot; None: it has none.
        put_off: why it was not begun, for want of a slot.
        well: the host is as it should be, whatever has failed; others may reboot.
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
    slot: str | None = None
    put_off: str | None = None
    well: bool = True

    @property
    def owes(self) -> bool:
        """Is its slot to be given back?"""
        return self.slot is not None and self.phase in ENDED and self.well


class Change(msgspec.Struct, frozen=True):
    """What is new in a drain's record: *text*, *pod* and *what* as in Event."""

    text: str
    what: str | None = None
    pod: str | None = None


def changes(before: Drain | None, after: Drain) -> list[Change]:
    """Return what has happened to a drain between two records. Pure.

    Args:
        before: the record of the same drain; None: it begins.
        after: the new one.
    """
    known = {pod.pod: pod for pod in before.pods} if before else {}
    pods = [
        Change(pod.words, pod.place, pod.pod) for pod in after.pods if known.get(pod.pod) != pod
    ]
    if before is None:
        who = "by itself" if after.automatic else "by hand"
        return [Change(f"begins, {who}: {'; '.join(after.wanted)}", after.phase), *pods]
    said = pods
    if after.phase != before.phase:
        said.append(Change(_phase(after, booted=before.phase == "returning"), after.phase))
    if after.reboots != before.reboots:
        said.append(Change(f"order {after.reboots} to reboot is given"))
    return said


def _phase(drain: Drain, *, booted: bool) -> str:
    kernel = f", which is to bring kernel {drain.expected}" if drain.expected else ""
    runs = f"; kernel {drain.expected} runs, as expected" if drain.expected and booted else ""
    return {
        "asking": "a slot to reboot is asked for",
        "stopping": "the pods are stopped",
        "installing": f"to install: {' '.join(drain.packages) or 'nothing'}",
        "confirming": "the installation has ended; what it has brought is looked at",
        "ready": f"it waits for a reboot{kernel}",
        "rebooting": f"it goes on with a reboot{kernel}",
        "returning": "the host was booted; the pods are restarted",
        "undoing": f"the pods are restarted here: {drain.failed or 'it was called off'}",
        "done": f"done{runs}",
        "failed": f"failed: {drain.failed}",
        "put off": f"put off: {drain.put_off}",
    }[drain.phase]


class Event(msgspec.Struct, frozen=True):
    """Something that has happened.

    Attributes:
        number: rises from each to the next.
        at: when.
        kind: "alert", "drain", "pod" (of a drain), "hold" or "notify".
        text: in words.
        drain: id of the drain to which it happened.
        pod: to which of its pods.
        what: the phase that begins, or the pod's new place.
    """

    number: int
    at: datetime
    kind: str
    text: str
    drain: str | None = None
    pod: str | None = None
    what: str | None = None


class Hold(msgspec.Struct, frozen=True):
    """A hold by hand: since when, and why."""

    at: datetime
    reason: str


class Store:
    """An open database; see opened().

    Attributes:
        db: its connection, for modules with tables of their own (autopod/status/outbox.py).
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.db = connection

    def add_report(self, at: datetime, level: str, said: str) -> None:
        """Keep a report, as JSON; old ones go."""
        with self.db:
            self.db.execute("INSERT INTO report VALUES (?, ?, ?)", (at.isoformat(), level, said))
            self.db.execute(
                "DELETE FROM report WHERE rowid <= (SELECT max(rowid) FROM report) - ?", (_KEPT,)
            )

    def add_event(self, kind: str, text: str) -> None:
        """Write down that something has happened."""
        with self.db:
            self._event(kind, text)

    def add_news(self, kind: str, text: str) -> None:
        """Write down what is the case now, unless it was so the last time."""
        query = "SELECT text FROM event WHERE kind = ? ORDER BY rowid DESC LIMIT 1"
        if self.db.execute(query, (kind,)).fetchone() != (text,):
            self.add_event(kind, text)

    def recent(self, most: int, after: int = 0) -> list[Event]:
        """Return the *most* newest events (-1: all) numbered above *after*, the oldest first."""
        rows = self.db.execute(
            "SELECT rowid, at, kind, text, drain, pod, what FROM event WHERE rowid > ? "
            "ORDER BY rowid DESC LIMIT ?",
            (after, most),
        ).fetchall()
        return [
            Event(number, datetime.fromisoformat(at), *rest) for number, at, *rest in reversed(rows)
        ]

    def last_report(self) -> str | None:
        """Return the newest report, as JSON."""
        row = self.db.execute("SELECT said FROM report ORDER BY rowid DESC LIMIT 1").fetchone()
        return row[0] if row else None

    def hold(self) -> Hold | None:
        """Return the hold by hand, if there is one."""
        row = self.db.execute("SELECT at, reason FROM hold").fetchone()
        return Hold(datetime.fromisoformat(row[0]), row[1]) if row else None

    def set_hold(self, reason: str | None) -> bool:
        """Let the service do nothing on this host, because of *reason*; None: let it act again.

        Returns:
            Is it different from before? None where nothing was held is not, and no event.
        """
        with self.db:
            held = self.db.execute("DELETE FROM hold").rowcount > 0
            if reason is None and not held:
                return False
            if reason is not None:
                self.db.execute("INSERT INTO hold VALUES (?, ?)", (_now(), reason))
            self._event("hold", "ended" if reason is None else f"begun: {reason}")
        return True

    def save(self, drain: Drain) -> None:
        """Write down how far a drain has come, and as events what is new of that."""
        with self.db:
            before = self.drain(drain.id)
            self.db.execute(
                "INSERT INTO drain VALUES (?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                (drain.id, _now(), msgspec.json.encode(drain).decode()),
            )
            for one in changes(before, drain):
                self._event("pod" if one.pod else "drain", one.text, drain.id, one.pod, one.what)

    def drain(self, name: str) -> Drain | None:
        """Return the drain with that id."""
        row = self.db.execute("SELECT record FROM drain WHERE id = ?", (name,)).fetchone()
        return msgspec.json.decode(row[0], type=Drain) if row else None

    def last_drain(self) -> Drain | None:
        """Return the newest drain, ended or not."""
        row = self.db.execute("SELECT record FROM drain ORDER BY rowid DESC LIMIT 1").fetchone()
        return msgspec.json.decode(row[0], type=Drain) if row else None

    def _event(self, kind: str, text: str, *of_a_drain: str | None) -> None:
        row = (_now(), kind, text, *(of_a_drain or (None, None, None)))
        self.db.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", row)


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
        ours = len(_SCHEMAS)
        if version > ours:
            raise sqlite3.DatabaseError(f"autopod.db is of version {version}, this is {ours}")
        for schema in _SCHEMAS[version:]:
            for statement in filter(str.strip, schema.split(";")):
                connection.execute(statement)
        if version < ours:
            connection.execute(f"PRAGMA user_version = {ours}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
