"""The address book: who of this host's pods has which identity in the network, for its life.

`/var/lib/autopod/network.json`. What is made in the kernel follows from it and from nothing else,
so that it can be made again after a reboot or a crash. It is read by anybody, and written by
launcher.links alone, under the lock.
"""

from contextlib import AbstractContextManager

import msgspec

from launcher import book as books
from launcher.errors import PodError
from launcher.identity import Identity
from launcher.netconfig import Network
from launcher.places import Places


class Entry(msgspec.Struct, frozen=True):
    """A pod: what its configuration said, and what came of it.

    Attributes:
        asked: by the configuration.
        identity: None: it has no network.
        base: of the user namespace that its network namespace belongs to (launcher.users); None:
            the host's.
    """

    asked: Network
    identity: Identity | None
    base: int | None = None


class Relay(msgspec.Struct, frozen=True):
    """A pod that has moved to another host of the overlay, and is still reached through this one.

    Attributes:
        identity: its own; the addresses are taken here as long as it is reached.
        host: where it went from here.
    """

    identity: Identity
    host: str


class Book(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        pods: by name.
        relays: by name of the pod. One of a pod that is here means nothing, until that goes.
        forwards: the host forwards packets because of the pods, and did not before.
    """

    pods: dict[str, Entry] = {}  # msgspec copies it
    forwards: bool = False
    relays: dict[str, Relay] = {}

    @property
    def relayed(self) -> dict[str, Relay]:
        """Pods that are not here and reached through this host."""
        return {name: r for name, r in self.relays.items() if name not in self.pods}

    @property
    def reached(self) -> dict[str, Identity]:
        """Of all pods that are reached through this host."""
        return {**{name: r.identity for name, r in self.relayed.items()}, **self.identities}

    @property
    def identities(self) -> dict[str, Identity]:
        """Of those that have one."""
        return {name: e.identity for name, e in self.pods.items() if e.identity is not None}


def read(places: Places) -> Book:
    """Return the book.

    Raises:
        PodError: it is damaged.
    """
    path = places.addresses()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Book)
    except FileNotFoundError:
        return Book()
    except (msgspec.DecodeError, msgspec.ValidationError) as e:
        hint = "move it away: pods then get the addresses that their configuration or name gives"
        raise PodError(f"{path}: {e}", hint) from e


def identity_of(places: Places, name: str) -> Identity | None:
    """Return the identity of pod *name*; None if it has no network, or was never made.

    Raises:
        PodError: the book is damaged.
    """
    return read(places).identities.get(name)


def write(places: Places, book: Book) -> None:
    """Replace the book in one step; an empty one is no file."""
    books.write(places.addresses(), None if book == Book() else book)


def locked(places: Places) -> AbstractContextManager[None]:
    """Hold the lock of all that pods share in the network, `/run/autopod/network.lock`."""
    return books.locked(places, "network")
