"""Which names a stack of directories shows. Pure."""

import enum
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

L = TypeVar("L")


class Kind(enum.IntEnum):
    """What a name in one layer means to the union."""

    FILE = 0
    DIRECTORY = 1
    WHITEOUT = 2


class Entry(Generic[L]):
    """A visible name.

    Attributes:
        layers: the layers that make it up, top first: one for a file; for a directory those whose
            directories merge, as far as names tell (an opaque mark may end them earlier).
        directory: whether it is a directory.
        ino: its inode number in the stack once that is known, else 0.
    """

    __slots__ = ("directory", "ino", "layers")

    def __init__(self, layers: tuple[L, ...], *, directory: bool, ino: int = 0) -> None:
        self.layers = layers
        self.directory = directory
        self.ino = ino


def merge(listings: Iterable[tuple[L, Mapping[bytes, Kind]]]) -> dict[bytes, Entry[L]]:
    """Return what is visible of *listings*, the directory's contents in each layer, top first.

    A file or a whiteout hides that name in all layers below; directories of a name merge until
    a layer has something else there.
    """
    visible: dict[bytes, Entry[L]] = {}
    hidden: set[bytes] = set()
    for layer, names in listings:
        alone = (layer,)
        for name, kind in names.items():
            if name in hidden:
                continue
            entry = visible.get(name)
            if kind is Kind.DIRECTORY:
                if entry is None:
                    visible[name] = Entry(alone, directory=True)
                else:
                    entry.layers += alone
                continue
            hidden.add(name)
            if kind is Kind.FILE and entry is None:
                visible[name] = Entry(alone, directory=False)
    return visible
