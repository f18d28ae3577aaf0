"""Which ids of the host are the users of which pod: the book of users.

A pod with a user namespace has COUNT ids of the host for its own, from a base on, as long as it is
on this host: `/var/lib/autopod/users.json` says which. No two pods have the same, and none has what
the host has given to somebody else (subuid(5)). On another host it has others, which nothing
notices: its files know its users by its own numbers.
"""

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from launcher import book as books
from launcher import toml
from launcher.config import PodConfig
from launcher.errors import PodError
from launcher.places import Places
from launcher.toml import Table, reject

COUNT: Final = 1 << 16
"""How many users and groups a pod has: 0 to 65535, as the programs of a Debian system expect."""

_NONE: Final = (1 << 32) - 1  # (uid_t) -1
_SUBORDINATE: Final = (Path("/etc/subuid"), Path("/etc/subgid"))


class Pool(Table, frozen=True):
    """`/etc/autopod/users.toml`: which ids of the host are for pods.

    Attributes:
        first: of them. The default is a range that neither Debian nor systemd gives to anybody
            (systemd's UIDS-GIDS.md).
        pods: for how many pods they are.
    """

    first: int = 0x70000000
    pods: int = 4094

    def __post_init__(self) -> None:
        if self.first < COUNT:
            reject("first", self.first, f"must be {COUNT} or more: below are the host's own users")
        if self.pods < 1 or self.first + self.pods * COUNT > _NONE:
            reject("pods", self.pods, f"must be 1 or more, and all ids less than {_NONE}")


class _Book(msgspec.Struct, frozen=True):
    """Name of a pod -> its base."""

    bases: dict[str, int] = {}  # msgspec copies it


def allot(pool: Pool, taken: Collection[int], reserved: Iterable[range]) -> int | None:
    """Return the lowest base of *pool* that is free; None if there is none. Pure.

    Args:
        pool: of bases.
        taken: bases of other pods, perhaps of an earlier pool.
        reserved: ids that are somebody else's.
    """
    ranges = [*(range(base, base + COUNT) for base in taken), *reserved]
    last = pool.first + pool.pods * COUNT
    base = pool.first
    while base + COUNT <= last:
        in_the_way = [r for r in ranges if r.start < base + COUNT and base < r.stop]
        if not in_the_way:
            return base
        behind = max(r.stop for r in in_the_way) - pool.first
        base = pool.first + -(-behind // COUNT) * COUNT
    return None


def subordinate(text: str) -> list[range]:
    """Return the ids that *text*, a file as subuid(5) describes it, gives away. Pure."""
    found = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
            found.append(range(int(fields[1]), int(fields[1]) + int(fields[2])))
    return found


def base(places: Places, name: str) -> int | None:
    """Return the first of the ids that pod *name* has; None if it has none of its own.

    Raises:
        PodError: the book is damaged.
    """
    return _read(places).bases.get(name)


def ensure(places: Places, config: PodConfig) -> int | None:
    """Let the pod have ids, if its configuration wants that, and give up those that it has if not.

    Returns:
        The first of them; None: it has none.

    Raises:
        PodError: none are left, or the book is damaged.
        ConfigError: the pool cannot be understood.
    """
    name = config.name
    if (base(places, name) is not None) == config.user.namespace:
        return base(places, name)
    with _locked(places):
        bases = dict(_read(places).bases)
        bases.pop(name, None)
        if config.user.namespace:
            bases[name] = _free(places, bases.values())
        _write(places, _Book(bases))
    return bases.get(name)


def planned(places: Places, config: PodConfig) -> int | None:
    """Return what ensure() would, and change nothing."""
    if not config.user.namespace:
        return None
    bases = _read(places).bases
    return bases.get(config.name) or _free(places, bases.values())


def forget(places: Places, name: str) -> None:
    """Give up the ids of a pod that goes, if it has any."""
    if base(places, name) is not None:
        with _locked(places):
            bases = dict(_read(places).bases)
            bases.pop(name, None)
            _write(places, _Book(bases))


def _free(places: Places, taken: Collection[int]) -> int:
    path = places.users_config()
    try:
        pool = toml.decode(path.read_bytes(), path, Pool)
    except FileNotFoundError:
        pool = Pool()
    texts = (file.read_text() for file in _SUBORDINATE if file.exists())
    found = allot(pool, taken, [r for text in texts for r in subordinate(text)])
    if found is None:
        raise PodError(f"all ids of the {pool.pods} pods from {pool.first} on are taken", str(path))
    return found


def _read(places: Places) -> _Book:
    path = places.users()
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Book)
    except FileNotFoundError:
        return _Book()
    except (msgspec.DecodeError, msgspec.ValidationError) as e:
        hint = "stop all pods and move it away: each then gets ids anew when its root is mounted"
        raise PodError(f"{path}: {e}", hint) from e


def _write(places: Places, book: _Book) -> None:
    books.write(places.users(), book if book.bases else None)


def _locked(places: Places) -> AbstractContextManager[None]:
    return books.locked(places, "users")
