"""Who has a pod that moves: what both hosts write down, so that there is never more than one.

At the former host, `departing.json` in the pod's state: from before the pod is killed there until
its new host is known to run it. While it is there the pod is not started there
(launcher.pods.create()). When the new host is known never to run it, it becomes `returning.json`,
until the pod runs at its former host again.

At the new host, `arriving` in the pod's state names the session while the pod is being built. A
file per session in `.arrivals/` holds what was decided, and is made once: whoever makes it has
decided. *released* is written before the pod is let go, *refused* when the former host asks before
that, or when what a killed receiver left is found; so the answer is final, whenever it comes. Both
are there as drafts while the pod is built: a full disk keeps nobody from deciding.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from launcher.places import Places

Outcome = Literal["released", "refused"]

RECORDS: Final = frozenset({"departing.json", "returning.json", "arriving"})
"""What stands in a pod's state."""

ROOM: Final = 4 << 20
"""Bytes that a restart may write before the pod runs: records, files that programs have open."""

_SESSION: Final = re.compile(r"[0-9a-f]{32}")


class Departure(msgspec.Struct, frozen=True):
    """A pod that leaves.

    Attributes:
        session: names this attempt at both hosts, 32 hexadecimal digits.
        host: where it goes.
    """

    session: str
    host: str


class Arrival(msgspec.Struct, frozen=True):
    """What was decided about a session at the new host, and for which pod."""

    outcome: Outcome
    pod: str


def new_session() -> str:
    """Return a new session's name."""
    return os.urandom(16).hex()


def is_session(text: str) -> bool:
    """Can *text* name a session?"""
    return _SESSION.fullmatch(text) is not None


def depart(places: Places, pod: str, departure: Departure) -> None:
    """Write down, durably, that *pod* is being given away."""
    file = places.departure(pod)
    new = file.with_suffix(".new")
    _write(new, msgspec.json.encode(departure))
    new.replace(file)
    _sync(file.parent)


def stay(places: Places, pod: str) -> None:
    """Forget the departure of *pod*, which has not been killed, and runs on here."""
    places.departure(pod).unlink(missing_ok=True)


def reserve(places: Places, pod: str) -> None:
    """Keep room on the disk for a restart of *pod* here, should it be given away and not taken.

    Raises:
        OSError: there is not enough.
    """
    fd = os.open(_reserve(places, pod), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, ROOM)
    except OSError:
        use_reserve(places, pod)
        raise
    finally:
        os.close(fd)


def use_reserve(places: Places, pod: str) -> None:
    """Give that room free."""
    _reserve(places, pod).unlink(missing_ok=True)


def departure(places: Places, pod: str) -> Departure | None:
    """Return what is written down of *pod*, if it has been given away."""
    try:
        return msgspec.json.decode(places.departure(pod).read_bytes(), type=Departure)
    except FileNotFoundError:
        return None


def is_moving(places: Places, pod: str) -> bool:
    """Is anything written down of *pod*: does it leave or come, or was that broken off?"""
    return any((places.state(pod) / name).exists() for name in RECORDS)


def return_(places: Places, pod: str) -> None:
    """Write down that a pod that was given away was not taken, and is to be restarted here."""
    places.departure(pod).rename(_returning(places, pod))


def returns(places: Places, pod: str) -> bool:
    """Was that written down?"""
    return _returning(places, pod).exists()


def returning(places: Places, pod: str) -> Departure | None:
    """Return the departure that has come to nothing, until the pod runs here again."""
    try:
        return msgspec.json.decode(_returning(places, pod).read_bytes(), type=Departure)
    except FileNotFoundError:
        return None


def departed(places: Places, pod: str) -> None:
    """Forget the departure: the pod is known to run elsewhere, or here again."""
    use_reserve(places, pod)
    packed(places, pod).unlink(missing_ok=True)
    places.departure(pod).unlink(missing_ok=True)
    _returning(places, pod).unlink(missing_ok=True)


def packed(places: Places, pod: str) -> Path:
    """Return where the archive of a pod that leaves is kept until it runs elsewhere."""
    return places.state(pod) / "departing.pod"


def decide(places: Places, session: str, arrival: Arrival) -> Arrival:
    """Decide about a session, durably, unless that has been done.

    Returns:
        What is decided now.
    """
    file = _arrival(places, session)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_name(f".{session}.{os.getpid()}")
    with suppress(FileExistsError):  # one of two that try succeeds: link(2), EEXIST
        try:
            os.link(_draft(places, session, arrival.outcome), file)
        except FileNotFoundError:  # never built here, or decided meanwhile
            if not file.exists():
                try:
                    _write(new, msgspec.json.encode(arrival))
                    os.link(new, file)
                finally:
                    new.unlink(missing_ok=True)
    _sync(file.parent)
    for outcome in get_args(Outcome):
        _draft(places, session, outcome).unlink(missing_ok=True)
    return msgspec.json.decode(file.read_bytes(), type=Arrival)


def arrive(places: Places, pod: str, session: str) -> None:
    """Write down that *pod* is being built here, so that what is left of it can be told.

    Raises:
        OSError: as write(2); nothing is written down.
    """
    places.state(pod).mkdir(mode=0o700, parents=True, exist_ok=True)
    _arrivals(places).mkdir(mode=0o700, parents=True, exist_ok=True)
    drafts = {outcome: _draft(places, session, outcome) for outcome in get_args(Outcome)}
    file = _arriving(places, pod)
    new = file.with_suffix(".new")
    try:
        _write(new, session.encode())
        new.replace(file)
        for outcome, draft in drafts.items():
            _write(draft, msgspec.json.encode(Arrival(outcome, pod)))
    except BaseException:
        for one in (*drafts.values(), new, file):
            one.unlink(missing_ok=True)
        with suppress(OSError):  # it is the pod's layers', too
            places.state(pod).rmdir()
        raise


def arriving(places: Places, pod: str) -> str | None:
    """Return the session in which *pod* is being built here, or was when that was broken off."""
    try:
        session = _arriving(places, pod).read_text()
    except FileNotFoundError:
        return None
    return session if is_session(session) else None


def has_arrived(places: Places, pod: str) -> None:
    """Forget that it has been built here: it lives."""
    _arriving(places, pod).unlink(missing_ok=True)


def arrived(places: Places, session: str) -> Path:
    """Return where the archive of a pod that has been released is kept until it runs for sure."""
    return _arrival(places, session).with_suffix(".pod")


def unfinished(places: Places) -> list[str]:
    """Return the sessions whose archives are still kept: who released the pod has not said so."""
    return sorted(path.stem for path in _arrivals(places).glob("*.pod"))


def cache(places: Places, pod: str) -> Path:
    """Return where sealed layers of a pod that is not here are kept, by id, for when it comes."""
    return places.states() / f".{pod}.layers"


def _arriving(places: Places, pod: str) -> Path:
    return places.state(pod) / "arriving"


def _reserve(places: Places, pod: str) -> Path:
    return places.state(pod) / "departing.room"


def _returning(places: Places, pod: str) -> Path:
    return places.departure(pod).with_name("returning.json")


def _arrivals(places: Places) -> Path:
    return places.states() / ".arrivals"


def _arrival(places: Places, session: str) -> Path:
    if not is_session(session):
        raise ValueError(f"{session!r} names no session")
    return _arrivals(places) / session


def _draft(places: Places, session: str, outcome: Outcome) -> Path:
    return _arrivals(places) / f".{session}.{outcome}"


def _write(file: Path, data: bytes) -> None:
    with suppress(FileNotFoundError):
        file.unlink()
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(fd)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
