"""The kept checkpoints of a pod in an object store: `URL/POD/NUMBER-TIME.pod`, and their pins.

They are copies of what is in /var/lib/autopod/POD.checkpoints (autopod/checkpoints.py), under the
same names: that is the first place, and what is not there whole is never copied. All hosts that
had the pod write to the same place; a number that another host was quicker with is changed, here
and there. Nobody's word is taken for what comes back: an archive has its name on this host when
it has been verified from end to end, is of that pod, and of the time that its name says.

    python -m autopod.stored POD WHERE TIME     gets one, and prints its path

is for commands that go on to make a pod: obstore has threads, which they must not have.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from autopod import checkpoints, retention
from autopod.checkpoints import PIN, name_of
from autopod.errors import Refused
from autopod.objects import Objects, check_url
from autopod.retention import Taken
from ckpt.archive.errors import ArchiveError
from ckpt.progress import Progress, for_terminal
from launcher import commandline
from launcher.lock import locked
from launcher.places import Places

CONFIGURED: Final = "store"
_BEFORE_S: Final = 5
_AFTER_S: Final = 6 * 3600
"""An archive's name has the time when it was begun, the archive the one when it was signed."""


class Stored(Struct, frozen=True):
    """A checkpoint in the store, and the bytes of its archive."""

    taken: Taken
    size: int


def opened(places: Places, where: str = CONFIGURED) -> Objects | None:
    """Return the store that *where* names; None: none is configured.

    Args:
        places: the instance.
        where: a URL, or CONFIGURED.

    Raises:
        ConfigError, StoreFailed: there can be no such store.
    """
    from autopod.status import policy

    archives = policy.load(places).archives
    url = archives.url if where == CONFIGURED else check_url(where)
    return None if url is None else Objects(url, archives.endpoint)


def needed(places: Places, where: str) -> Objects:
    """Return the store that *where* names.

    Raises:
        Refused: none is configured.
    """
    objects = opened(places, where)
    if objects is None:
        hint = "set archives.url in /etc/autopod/autopod.toml, or name one: --from URL"
        raise Refused("no store is configured", hint)
    return objects


def known(objects: Objects, pod: str) -> list[Stored]:
    """Return the checkpoints of *pod* in the store, the oldest first.

    Raises:
        StoreFailed: it cannot be told.
    """
    sizes = objects.names(pod)
    return [Stored(one, sizes[name_of(one)]) for one in checkpoints.among(sizes)]


def url_of(objects: Objects, pod: str, one: Taken) -> str:
    """Return where it is."""
    return f"{objects.url}/{_key(pod, one)}"


def pin(objects: Objects, pod: str, number: int, *, pinned: bool) -> None:
    """Let checkpoint *number* stay in the store, or not.

    Raises:
        Refused: there is none with that number.
        StoreFailed: it may stay, or not.
    """
    one = numbered(objects, pod, number)
    _pin(objects, pod, one.taken, pinned=pinned)


def numbered(objects: Objects, pod: str, number: int) -> Stored:
    """Return the last one with that number.

    Raises:
        Refused: there is none.
    """
    found = [one for one in known(objects, pod) if one.taken.number == number]
    if not found:
        raise Refused(f"{objects.url} has no checkpoint {number} of pod {pod!r}")
    return found[-1]


def newest_at(objects: Objects, pod: str, moment: datetime) -> Stored:
    """Return the newest one at or before *moment*.

    Raises:
        Refused: there is none.
    """
    found = known(objects, pod)
    taken = retention.newest_at((one.taken for one in found), moment.timestamp())
    if taken is None:
        message = (
            f"{objects.url} has no checkpoint of pod {pod!r} at or before {moment.isoformat()}"
        )
        raise Refused(message, f"autopod checkpoints {pod} --from WHERE lists them")
    return next(one for one in found if one.taken == taken)


def sync(
    places: Places,
    pod: str,
    keep: int,
    objects: Objects,
    *,
    check: Callable[[Path], None],
    progress: Progress,
) -> list[str]:
    """Copy what is not in the store yet, then delete there what need not be kept.

    Each archive is copied whole or not at all, the newest first; what is not copied now is the
    next time. Call it without the pod's lock.

    Args:
        places: the instance.
        pod: its name.
        keep: how many stay besides those that are pinned, there as here.
        objects: the store.
        check: raises an Exception where an archive of this host is not good.
        progress: is told.

    Returns:
        What was done, in words.

    Raises:
        StoreFailed: it was not done, or not to its end.
        Refused: the pod has no kept checkpoints.
    """
    with _only_one(places, pod):
        said = _number(places, pod, keep, objects)
        whole = [one.taken for one in known(objects, pod) if not _is_cut(places, pod, one, check)]
        own = checkpoints.known(places, pod)
        pending = retention.missing(own, whole, keep)
        late = retention.renumbered(pending, own, whole)
        for one in reversed(pending):
            if one.number in late:
                said.append(f"checkpoint {one.number} is not copied: another host has later ones")
                continue
            with checkpoints.reading(places, pod, one) as file:
                objects.put(_key(pod, one), file, progress)
            said.append(f"copied checkpoint {one.number} to {url_of(objects, pod, one)}")
        return said + _tidy(places, pod, keep, objects, check)


def _is_cut(places: Places, pod: str, one: Stored, check: Callable[[Path], None]) -> bool:
    """Is what the store has certainly not what this host has, whole, under the same name?"""
    file = checkpoints.path_of(places, pod, one.taken)
    try:
        if file.stat().st_size == one.size:
            return False
        check(file)
    except Exception:  # noqa: BLE001 (not here, or not good: what is there may be better)
        return False
    return True


def _number(places: Places, pod: str, keep: int, objects: Objects) -> list[str]:
    """Give those that are to be copied the numbers that they have in the store."""
    stored = [one.taken for one in known(objects, pod)]
    said = []
    with locked(places, pod):
        own = checkpoints.known(places, pod)
        pending = retention.missing(own, stored, keep)
        given = retention.renumbered(pending, own, stored)
        for one in reversed(pending):  # the highest first: each into a gap
            number = given.get(one.number)
            if number and checkpoints.renumber(places, pod, one, number):
                said.append(f"checkpoint {one.number} is {number} now: other hosts have counted on")
    return said


def _tidy(
    places: Places, pod: str, keep: int, objects: Objects, check: Callable[[Path], None]
) -> list[str]:
    """Let pins be there as they are here; delete what need not be kept."""
    stored = {name_of(one.taken): one for one in known(objects, pod)}
    here = {name_of(one): one for one in checkpoints.known(places, pod)}
    for name in stored.keys() & here.keys():
        own, there = here[name], stored[name]
        if own.pinned != there.taken.pinned:
            _pin(objects, pod, own, pinned=own.pinned)
            stored[name] = replace(there, taken=own)

    def is_good(one: Taken) -> bool:
        file = checkpoints.path_of(places, pod, one)
        try:
            if file.stat().st_size != stored[name_of(one)].size:
                return False
            check(file)
        except Exception:  # noqa: BLE001 (whatever it is, it is not known to be good)
            return False
        return True

    gone = retention.expendable([one.taken for one in stored.values()], keep, (), is_good)
    for one in gone:
        objects.delete(_key(pod, one))
    return [f"deleted checkpoint {one.number} in {objects.url}" for one in gone]


def fetch(places: Places, pod: str, objects: Objects, one: Stored, progress: Progress) -> Path:
    """Have a checkpoint of the store among those that are kept here; return the archive.

    Raises:
        ArchiveError: it is refused: changed, cut short, of a key that is not trusted, of another
            pod or time than its name says. Nothing is left of it.
        Refused: there is no room for it.
        StoreFailed: it was not got.
    """
    from ckpt.archive.newfile import NewFile

    path = checkpoints.path_of(places, pod, one.taken)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size == one.size:
        return path
    free = shutil.disk_usage(path.parent).free
    if one.size > free:
        raise Refused(f"{path.parent} has {free} bytes free, the archive has {one.size}")
    file = NewFile(path)
    try:
        objects.get(_key(pod, one.taken), one.size, file.fd, progress)
        _verify(places, pod, one.taken, file.fd, url_of(objects, pod, one.taken), progress)
        file.commit()
    finally:
        file.discard()
    return path


def _verify(places: Places, pod: str, one: Taken, fd: int, url: str, progress: Progress) -> None:
    from ckpt.archive import keys
    from ckpt.archive.read import open_archive

    nameless = Path(f"/proc/self/fd/{fd}")
    trusted = keys.load_trusted(places.trust())
    try:
        with open_archive(nameless, trusted, identities=None) as archive:
            archive.verify(progress)
    except ArchiveError as e:
        e.args = (str(e).replace(f"{nameless}", url),)
        raise
    manifest = archive.manifest
    if manifest.pod != pod:
        raise ArchiveError(f"{url}: it is a checkpoint of pod {manifest.pod!r}")
    made = datetime.fromisoformat(manifest.created).timestamp()
    if not one.at - _BEFORE_S <= made <= one.at + _AFTER_S:
        raise ArchiveError(f"{url}: it was taken at {manifest.created}")


def fetch_apart(places: Places, pod: str, where: str, moment: datetime) -> Path | None:
    """Do that by another process, for the newest one at or before *moment*.

    Returns:
        The archive; None: it is not to be had, and why has been told on standard error.
    """
    argv = [sys.executable, "-m", "autopod.stored", pod, where, moment.isoformat()]
    environment = {**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)}
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    return Path(os.fsdecode(done.stdout.rstrip(b"\n"))) if done.returncode == 0 else None


@contextmanager
def _only_one(places: Places, pod: str) -> Iterator[None]:
    """Within the block, be the only process of this host that copies checkpoints of *pod*.

    Raises:
        Refused: another does.
    """
    places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            places.run(pod).mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # a command had it to itself (launcher/lock.py)
            fd = os.open(places.run(pod) / "copying", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            break
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"checkpoints of pod {pod!r} are being copied already") from None
        yield
    finally:
        os.close(fd)


def _pin(objects: Objects, pod: str, one: Taken, *, pinned: bool) -> None:
    name = _key(pod, one) + PIN
    if pinned:
        objects.mark(name)
    else:
        objects.delete(name)


def _key(pod: str, one: Taken) -> str:
    return f"{pod}/{name_of(one)}"


def main() -> int:
    """Be the process."""
    places = Places.from_environment()
    try:
        pod, where, moment = sys.argv[1:]
        commandline.pod(pod)
        objects = needed(places, where)
        one = newest_at(objects, pod, datetime.fromisoformat(moment))
        sys.stdout.write(f"{fetch(places, pod, objects, one, for_terminal())}\n")
    except Exception as e:  # noqa: BLE001 (it is told)
        commandline.complain("autopod", e)
        return 1
    return 0


if __name__ == "__main__":
    commandline.leave(main())
