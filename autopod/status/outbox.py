"""Notices on their way: who is still to be told of what. In autopod.db, so that nothing is lost.

For each receiver the database has the number of the last event that was looked at, and a row for
each notice that is not delivered yet. A row is gone once its receiver has taken it: whoever is
killed in between tells it a second time, with the same number.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from autopod.status.store import Event, Store

_AGAIN: Final = timedelta(hours=25)
_FIRST_S: Final = 15.0
_MOST_S: Final = 3600.0
TRIES: Final = 24
"""Some 18 hours."""

_PHASES: Final = {
    "stopping": "a drain has begun",
    "ready": "drained, and can be rebooted",
    "returning": "rebooted, its pods are being restarted",
    "done": "a drain has ended",
    "failed": "a drain has failed",
}


class Notice(msgspec.Struct, frozen=True):
    """What a receiver is told.

    Attributes:
        event: the number of the event; 0: a trial.
        at: when it happened, in ISO 8601.
        kind: "alert", "drain" or "test".
        text: in words.
        what: the phase of a drain that begins.
    """

    event: int
    at: str
    kind: str
    text: str
    what: str | None = None

    @property
    def subject(self) -> str:
        """It in few words."""
        return subject(self.kind, self.text, self.what) or "a trial"


class Waiting(msgspec.Struct, frozen=True):
    """A notice that is not delivered: to whom, how often that was tried, when next, and why."""

    receiver: str
    notice: Notice
    tries: int
    due: float
    failed: str | None


def subject(kind: str, text: str, what: str | None) -> str | None:
    """Return an event in few words, if anybody is to be told of it. Pure."""
    if kind == "alert":
        return f"alert: {text.partition(':')[0]}"
    return _PHASES.get(what or "") if kind == "drain" else None


def pause_s(tries: int) -> float:
    """Return how long to wait after *tries* of them failed. Pure."""
    return min(_FIRST_S * float(1 << min(tries, 20)), _MOST_S)


def is_behind(store: Store, names: Iterable[str]) -> bool:
    """Has anything happened that was not looked at for each of *names*?"""
    seen = dict(store.db.execute("SELECT name, seen FROM receiver"))
    newest = _newest(store)
    return seen.keys() != set(names) or any(one != newest for one in seen.values())


def queue(store: Store, names: Sequence[str]) -> None:
    """Write down what each of the receivers is to be told of what has happened since.

    A receiver that is new is told nothing of before; of one that is gone all is forgotten.
    """
    with store.db:
        store.db.execute("BEGIN IMMEDIATE")
        seen = dict(store.db.execute("SELECT name, seen FROM receiver"))
        newest = _newest(store)
        for gone in seen.keys() - set(names):
            store.db.execute("DELETE FROM receiver WHERE name = ?", (gone,))
            store.db.execute("DELETE FROM notice WHERE receiver = ?", (gone,))
        since = min((seen[name] for name in names if name in seen), default=newest)
        news = [one for one in store.recent(-1, since) if _is_news(store, one)]
        for name in names:
            for one in news:
                if one.number > seen.get(name, newest):
                    _add(store, name, one)
            store.db.execute(
                "INSERT INTO receiver VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET seen = excluded.seen",
                (name, newest),
            )


def _newest(store: Store) -> int:
    [newest] = store.db.execute("SELECT coalesce(max(rowid), 0) FROM event").fetchone()
    return int(newest)


def _is_news(store: Store, event: Event) -> bool:
    """Is somebody to be told, and was not of the same a day ago? Faults are found at each look."""
    if subject(event.kind, event.text, event.what) is None:
        return False
    same = store.db.execute(
        "SELECT 1 FROM event WHERE kind = 'alert' AND text = ? AND rowid < ? AND at > ? LIMIT 1",
        (event.text, event.number, (event.at - _AGAIN).isoformat()),
    )
    return event.kind != "alert" or same.fetchone() is None


def _add(store: Store, name: str, event: Event) -> None:
    store.db.execute(
        "INSERT INTO notice VALUES (?, ?, ?, ?, ?, 0, 0, NULL, ?)",
        (name, event.number, event.at.isoformat(), event.kind, event.text, event.what),
    )


def due(store: Store, now: float) -> list[Waiting]:
    """Return of each receiver the oldest notice, where its time has come."""
    oldest = {one.receiver: one for one in reversed(waiting(store))}
    return [one for one in oldest.values() if one.due <= now]


def waiting(store: Store) -> list[Waiting]:
    """Return what is not delivered, in the order in which it happened."""
    rows = store.db.execute(
        "SELECT receiver, event, at, kind, text, what, tries, due, failed "
        "FROM notice ORDER BY event"
    )
    return [
        Waiting(receiver, Notice(event, at, kind, text, what), tries, due, failed)
        for receiver, event, at, kind, text, what, tries, due, failed in rows
    ]


def delivered(store: Store, one: Waiting) -> None:
    """Forget a notice: it has been taken."""
    with store.db:
        _remove(store, one)


def failed(store: Store, one: Waiting, why: str, now: float) -> None:
    """Write down that it was not taken; after the last try it is given up, which is an event."""
    tries = one.tries + 1
    with store.db:
        if tries < TRIES:
            store.db.execute(
                "UPDATE notice SET tries = ?, due = ?, failed = ? WHERE receiver = ? AND event = ?",
                (tries, now + pause_s(one.tries), why, one.receiver, one.notice.event),
            )
        else:
            _remove(store, one)  # and its event with it: the commit is that one's
            store.add_event("notify", f"{one.receiver} was not told: {one.notice.text} ({why})")


def _remove(store: Store, one: Waiting) -> None:
    store.db.execute(
        "DELETE FROM notice WHERE receiver = ? AND event = ?", (one.receiver, one.notice.event)
    )


def trial(at: datetime) -> Notice:
    """Return a notice that says nothing."""
    return Notice(
        0, at.isoformat(timespec="seconds"), "test", "this is a trial of autopod's notices"
    )
