"""The files that the sealed layers of an archive make, from their tars: names, sizes, deletions.

Only told, never made: names are as the pod chose them. Source: OCI image-spec 1.1, layer.md.
"""

import io
import stat
import tarfile
from collections.abc import Iterator
from typing import Final, Literal

from msgspec import Struct, field

from ckpt.archive.errors import FormatError

_DELETED: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_REDIRECT: Final = "SCHILY.xattr.trusted.overlay.redirect"
_TYPES: Final[dict[bytes, "Type"]] = {
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "fifo",
}

Type = Literal["file", "directory", "link", "device", "fifo", "deleted"]


class Entry(Struct, frozen=True):
    """What a layer says of a name.

    Attributes:
        type: "deleted" where a layer hides what is below.
        size: bytes of a file.
        about: what else tells it from another: owner, permissions, time, target.
        moved_from: of a directory that was moved without its files: where they are.
    """

    type: Type
    size: int = 0
    about: tuple[object, ...] = ()
    moved_from: str = ""


class View(Struct):
    """A directory of what the layers make together: entries and, by name, what is in them."""

    entry: Entry | None = None
    inside: dict[str, "View"] = field(default_factory=dict)

    def add_layer(self, pieces: Iterator[bytes], name: str) -> None:
        """Put a layer on top.

        Args:
            pieces: its OCI layer tar.
            name: for errors.

        Raises:
            FormatError: it is not a tar.
        """
        try:
            stream = io.BufferedReader(Pieces(pieces))
            with tarfile.open(fileobj=stream, mode="r|", errors="surrogateescape") as tar:
                for member in tar:
                    self._add(member)
                    tar.members = []  # type: ignore[attr-defined]  # or it keeps all that it has seen
        except (tarfile.TarError, ValueError, ArithmeticError, EOFError) as e:
            raise FormatError(f"{name}: not a layer: {e}") from e

    def files(self) -> Iterator[tuple[str, Entry]]:
        """Yield all names with their entries, by name."""
        waiting = [("", self)]
        while waiting:
            path, here = waiting.pop()
            if here.entry and path:
                yield path, here.entry
            names = sorted(here.inside, reverse=True)
            waiting += [(f"{path}/{name}", here.inside[name]) for name in names]

    def _add(self, member: tarfile.TarInfo) -> None:
        *parents, name = [part for part in member.name.split("/") if part not in {"", "."}] or [""]
        here = self
        for parent in parents:
            here = here.inside.setdefault(parent, View())
        if name == _OPAQUE:
            here.inside.clear()
        elif name.startswith(_DELETED):
            here.inside[name.removeprefix(_DELETED)] = View(Entry("deleted"))
        elif name:
            entry = _entry(member)
            if entry.type == "directory" and name in here.inside and not entry.moved_from:
                here.inside[name].entry = entry
            else:
                here.inside[name] = View(entry)


def _entry(member: tarfile.TarInfo) -> Entry:
    kind: Type = _TYPES.get(member.type, "file")
    time = 0 if kind == "directory" else member.mtime
    about = (member.mode, member.uid, member.gid, member.linkname, time)
    moved = member.pax_headers.get(_REDIRECT, "")
    size = member.size if kind == "file" and stat.S_IFMT(member.mode) in {0, stat.S_IFREG} else 0
    return Entry(kind, size, about, moved)


class Pieces(io.RawIOBase):
    """A stream of *pieces*."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:  # type: ignore[explicit-override]
        """It is."""
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[explicit-override, override]
        """Read some bytes; 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
