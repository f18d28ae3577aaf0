"""What the bytes of an archive say, or why they say nothing that can be read. Pure."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from ckpt.archive.errors import ArchiveError, FormatError
from ckpt.states import UNDECODABLE

T = TypeVar("T")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what refuses the archive say which file that is."""
    try:
        yield
    except ArchiveError as e:
        if not str(e).startswith(f"{path}: "):
            e.args = (f"{path}: {e}",)
        raise


class ModelVersion(msgspec.Struct):
    """Of the process model, whatever else it holds."""

    version: int


def decode(data: bytes, kind: type[T], what: str) -> T:
    """Return the *kind* that MessagePack *data* is; *what* it is is for the error.

    Raises:
        FormatError: it is none.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except UNDECODABLE as e:
        raise FormatError(f"{what}: {e}") from e


def decode_json(data: bytes, kind: type[T], what: str) -> T:
    """Return the *kind* that JSON *data* is, as decode()."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNDECODABLE as e:
        raise FormatError(f"{what}: {e}") from e
