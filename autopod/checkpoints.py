"""The kept checkpoints of a pod: `/var/lib/autopod/POD.checkpoints/NUMBER-TIME.pod`.

Each is an archive that needs no other, or, as `NUMBER-TIME-since-NUMBER.pod`, just that one. It has
its name when it is complete and durable, so a listing of the directory is the truth, whatever was
killed when. `….pod.pin` beside one pins it. Two locks (flock(2), which die with their holders):
on the directory, for whoever deletes, pins, or begins to read; on an archive, shared, for its
readers.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from autopod import retention
from autopod.errors import Refused
from autopod.retention import Taken
from launcher.places import Places

PIN: Final = ".pin"
"""What the name of a pin ends with; the rest is the archive's."""

_TIME: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(r"([0-9]{6,})-([0-9]{8}T[0-9]{6}Z)(?:-since-([0-9]{6,}))?\.pod")


def directory(places: Places, pod: str) -> Path:
    """Where the checkpoints of *pod* are kept. No pod can have this name."""
    return places.states() / f"{pod}.checkpoints"


def known(places: Places, pod: str) -> list[Taken]:
    """Return the kept checkpoints of *pod*, the oldest first."""
    names = set(_names(directory(places, pod)))
    return among(names)


def among(names: Collection[str]) -> list[Taken]:
    """Return the checkpoints that *names*, of files or objects, are of; the oldest first. Pure."""
    found = [_taken(name, pinned=name + PIN in names) for name in names]
    return sorted((one for one in found if one), key=lambda one: (one.number, one.at))


def path_of(places: Places, pod: str, one: Taken) -> Path:
    """Return the archive."""
    return directory(places, pod) / name_of(one)


def next_path(places: Places, pod: str, since: Taken | None = None) -> Path:
    """Return where the next checkpoint of *pod* goes; its time is now.

    It builds upon the whole one *since*, if that is given.

    The caller holds the pod's lock: two would get the same number.
    """
    own = directory(places, pod)
    own.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in _names(own):  # where files cannot be nameless (ckpt.archive.newfile), and killed
        if name.startswith("."):
            (own / name).unlink(missing_ok=True)
    number = max((one.number for one in known(places, pod)), default=0) + 1
    base = None if since is None else since.number
    return own / name_of(Taken(number, int(time.time()), since=base))


def pin(places: Places, pod: str, number: int, *, pinned: bool = True) -> None:
    """Let checkpoint *number* stay, or not.

    Raises:
        Refused: there is none with that number.
    """
    with _held(places, pod) as fd:
        one = retention.numbered(known(places, pod), number)
        if one is None:
            raise _none(pod, f"{number}")
        mark = path_of(places, pod, one).with_name(name_of(one) + PIN)
        if pinned:
            mark.touch(mode=0o600)
        else:
            mark.unlink(missing_ok=True)
        os.fsync(fd)


@contextmanager
def using(places: Places, pod: str, moment: datetime) -> Iterator[tuple[Taken, Path]]:
    """Within the block, have the newest checkpoint at or before *moment*; it is not deleted.

    Raises:
        Refused: there is none.
    """
    with _held(places, pod):
        found = known(places, pod)
        one = retention.newest_at(found, moment.timestamp())
        if one is None:
            hint = f"the oldest is of {spelled(found[0])}" if found else ""
            raise _none(pod, f"at or before {moment.isoformat()}", hint)
        path = path_of(places, pod, one)
        fd = _shared(path)
    try:
        yield one, path
    finally:
        os.close(fd)


@contextmanager
def reading(places: Places, pod: str, one: Taken) -> Iterator[Path]:
    """Within the block, checkpoint *one* is not deleted.

    Raises:
        Refused, FileNotFoundError: it is not there.
    """
    with _held(places, pod):
        fd = _shared(path_of(places, pod, one))
    try:
        yield path_of(places, pod, one)
    finally:
        os.close(fd)


def renumber(places: Places, pod: str, one: Taken, number: int) -> bool:
    """Give checkpoint *one* another number; tell whether that could be done: nobody reads it.

    The caller holds the pod's lock. Killed at any step there is one archive, and its pin.
    """
    with _held(places, pod) as fd:
        old, new = path_of(places, pod, one), path_of(places, pod, replace(one, number=number))
        if _is_used(old) or new.exists():
            return False
        if one.pinned:
            new.with_name(new.name + PIN).touch(mode=0o600)
        old.rename(new)
        old.with_name(old.name + PIN).unlink(missing_ok=True)
        os.fsync(fd)
    return True


def _shared(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return fd


def collect(places: Places, pod: str, keep: int, check: Callable[[Path], None]) -> list[Taken]:
    """Delete what need not be kept; see retention.expendable(). Return what was deleted.

    Args:
        places: the instance.
        pod: its name.
        keep: how many stay besides those that are pinned.
        check: raises an Exception where an archive is not good.
    """

    def is_good(one: Taken) -> bool:
        try:
            check(path_of(places, pod, one))
        except Exception:  # noqa: BLE001 (whatever it is, it is not known to be good)
            return False
        return True

    with _held(places, pod) as fd:
        found = known(places, pod)
        in_use = {one.number for one in found if _is_used(path_of(places, pod, one))}
        gone = retention.expendable(found, keep, in_use, is_good)
        for one in sorted(gone, key=lambda one: one.since is None):  # first what needs another
            path_of(places, pod, one).unlink()
        if gone:
            os.fsync(fd)
        for name in _names(directory(places, pod)):  # of what somebody deleted by hand
            if name.endswith(PIN) and not (directory(places, pod) / name[: -len(PIN)]).exists():
                (directory(places, pod) / name).unlink()
    return gone


def spelled(one: Taken) -> str:
    """Return when it was taken, for people and programs (RFC 3339, UTC)."""
    return datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def _held(places: Places, pod: str) -> Iterator[int]:
    """Within the block, nobody else deletes, pins or begins to read; have the directory."""
    try:
        fd = os.open(directory(places, pod), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _none(pod, "") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _is_used(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _names(path: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(path)
    return []


def name_of(one: Taken) -> str:
    """Return the name of the archive. Pure."""
    since = "" if one.since is None else f"-since-{one.since:06d}"
    return f"{one.number:06d}-{datetime.fromtimestamp(one.at, UTC).strftime(_TIME)}{since}.pod"


def _taken(name: str, *, pinned: bool) -> Taken | None:
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    try:
        at = datetime.strptime(found[2], _TIME).replace(tzinfo=UTC)
    except ValueError:  # month 13
        return None
    since = None if found[3] is None else int(found[3])
    return Taken(int(found[1]), int(at.timestamp()), pinned, since)


def _none(pod: str, which: str, hint: str = "") -> Refused:
    message = f"pod {pod!r} has no kept checkpoint {which}".rstrip()
    return Refused(message, hint or f"autopod checkpoints {pod} lists them")
