"""What outlives a daemon that is killed: which file the kernel and the programs mean by a number.

The kernel goes on naming inodes and open files by the numbers that it was told. A daemon notes
what they stand for in a memory file, whose descriptor its holder keeps (holder.py), before it
answers. A new daemon reads it (`replay`) and goes on. Nothing here is for a power loss: then the
kernel has forgotten as well.

    JOURNAL ::= word[0]: index of the pending intent's word, 0 if none; words 1 to 7 unused; RECORD*
    RECORD  ::= word: kind | size << 8, size in bytes with this word; words; name; padding to a word

A record's first word is written last, so that a half-written one is the end of the journal. The
count of a `PLACE` record is changed in place. When most of the journal is out of date it is
written anew to another memory file, which takes the old one's descriptor number in one step.

A change that cannot be made twice is noted as an *intent* before it is begun, and the note is
taken back (`settle`) when the next request is about to be read, which is after the reply. The
daemon changes one thing at a time, so one note is enough.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from stackfs import abi


class _Kind:
    """Of a record."""

    PLACE = 1
    PIN = 2
    GONE = 3
    ALIAS = 4
    INTENT = 5


_FIRST: Final = 64
"""Offset of the first record."""

_WORDS: Final = [struct.Struct(f"={count}Q") for count in range(6)]

_MIN_LIMIT: Final = 1 << 20
_MIN_REGION: Final = 1 << 30
"""Bytes of a memory file; a page takes memory when it is first written to."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an inode was last known to be.

    Attributes:
        parent: inode number of the directory.
        name: in it.
        slot: index of the word that counts the kernel's references.
    """

    parent: int
    name: bytes
    slot: int


@dataclass(frozen=True, slots=True)
class Pin:
    """A descriptor that is the only way to a file.

    Attributes:
        fd: O_PATH descriptor.
        layer: number of its layer.
        linked: whether another name leads to it.
        limbo: whether it has no name and may be changed.
    """

    fd: int
    layer: int
    linked: bool
    limbo: bool


class Intent(NamedTuple):
    """A change that was begun, and perhaps made; its reply perhaps sent.

    Attributes:
        opcode: of the request (requests.py).
        pid: the caller's thread id, 0 where it is unknown.
        ino: what is moved, removed or changed.
        parent: the request's inode: mostly a directory.
        name: in it.
        new_parent: of a rename.
        new_name: of a rename.
    """

    opcode: int
    pid: int
    ino: int
    parent: int
    name: bytes = b""
    new_parent: int = 0
    new_name: bytes = b""


@dataclass(slots=True)
class State:
    """What a journal says.

    Attributes:
        places: by inode number.
        pins: by inode number.
        aliases: inode numbers given, by the number claimed, device and inode of the backing file.
        intent: what was under way.
    """

    places: dict[int, Place] = field(default_factory=dict)
    pins: dict[int, Pin] = field(default_factory=dict)
    aliases: dict[tuple[int, int, int], int] = field(default_factory=dict)
    intent: Intent | None = None


class Journal:
    """A journal that is written to.

    Attributes:
        fd: descriptor of the memory file, which belongs to the holder.
        writers: called to write everything that is true into a new memory file.
    """

    def __init__(self, fd: int = -1) -> None:
        """Go on with the journal at *fd*, or begin one."""
        self.fd = fd if fd >= 0 else _new_region(_MIN_REGION)
        self.writers: list[Callable[[], None]] = []
        self._old: memoryview | None = None
        self._map(self.fd)
        self._end = _FIRST
        while header := self.words[self._end >> 3]:
            self._end += _padded(header >> 8)
        self._limit = max(_MIN_LIMIT, 3 * self._end)

    def _map(self, fd: int) -> None:
        self._bytes = abi.map_shared(fd, os.fstat(fd).st_size)
        self.words = self._bytes.cast("Q")

    def close(self) -> None:
        """End it: nobody will go on from here."""
        self.words.release()
        abi.unmap(self._bytes)
        os.close(self.fd)

    def state(self) -> State:
        """Return what it says."""
        return replay(self._bytes[: self._end + 8])

    def count(self, place: Place) -> int:
        """Return the kernel's references to what is at *place*."""
        count: int = (self.words if self._old is None else self._old)[place.slot]
        return count

    # --- records -------------------------------------------------------------------------

    def place(self, ino: int, parent: int, name: bytes, count: int) -> int:
        """Note where an inode is; return the index of the word that holds *count*."""
        return self._append(_Kind.PLACE, (ino, parent, count), name) + 3

    def pin(self, ino: int, pin: Pin) -> None:
        """Note that a descriptor is kept, because the place is no way to the file any more."""
        self._append(_Kind.PIN, (ino, pin.fd, pin.layer, pin.linked | pin.limbo << 1))

    def gone(self, ino: int) -> None:
        """Note that nobody refers to an inode any more."""
        self._append(_Kind.GONE, (ino,))

    def alias(self, claimed: int, backing: tuple[int, int], ino: int) -> None:
        """Note that a file does not have the number that it claims."""
        self._append(_Kind.ALIAS, (claimed, *backing, ino))

    def intend(self, intent: Intent) -> None:
        """Note what is about to be done."""
        words = (intent.opcode, intent.pid, intent.ino, intent.parent, intent.new_parent)
        names = intent.name + b"\0" + intent.new_name
        self.words[0] = self._append(_Kind.INTENT, words, names)

    def settle(self) -> None:
        """Note that what was intended has been done and answered."""
        self.words[0] = 0

    def _append(self, kind: int, words: tuple[int, ...], name: bytes = b"") -> int:
        size = 8 + 8 * len(words) + len(name)
        if self._end + size > self._limit:
            self._write_anew(size)
        first = self._end >> 3
        _WORDS[len(words)].pack_into(self._bytes, self._end + 8, *words)
        if name:
            self._bytes[self._end + size - len(name) : self._end + size] = name
        self._end += _padded(size)
        self.words[first] = kind | size << 8
        return first

    def _write_anew(self, size: int) -> None:
        """Leave out what is not true any more, and make room for *size* bytes."""
        old, self._old, pending = self._bytes, self.words, self.words[0]
        need = 4 * self._end + size
        fd = _new_region(max(_MIN_REGION, need))
        self._map(fd)
        self._end, self._limit = _FIRST, need
        if pending:
            start, length = pending << 3, self._old[pending] >> 8
            self._bytes[_FIRST : _FIRST + length] = old[start : start + length]
            self.words[0] = _FIRST >> 3
            self._end += _padded(length)
        for write in self.writers:
            write()
        self._limit = max(_MIN_LIMIT, 3 * self._end) + size
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self._old.release()
        self._old = None
        abi.unmap(old)


def _new_region(size: int) -> int:
    fd = os.memfd_create("stackfs-journal", os.MFD_CLOEXEC)
    os.ftruncate(fd, size + 4095 & ~4095)
    return fd


def _padded(size: int) -> int:
    return size + 7 & ~7


def replay(journal: memoryview | bytes) -> State:
    """Return what a journal says. Pure."""
    view = memoryview(journal)
    words = view.cast("Q")
    state = State()
    at = _FIRST
    while header := words[at >> 3]:
        _note(state, header & 0xFF, words, at >> 3, bytes(view[at : at + (header >> 8)]))
        at += _padded(header >> 8)
    if words[0]:
        start = words[0] << 3
        state.intent = _intent(bytes(view[start : start + (words[words[0]] >> 8)]))
    return state


def _note(state: State, kind: int, words: memoryview, at: int, record: bytes) -> None:
    ino = words[at + 1]
    match kind:
        case _Kind.PLACE:
            state.places[ino] = Place(words[at + 2], record[32:], at + 3)
            state.pins.pop(ino, None)
        case _Kind.PIN:
            flags = words[at + 4]
            state.pins[ino] = Pin(words[at + 2], words[at + 3], bool(flags & 1), flags > 1)
        case _Kind.GONE:
            state.places.pop(ino, None)
            state.pins.pop(ino, None)
        case _Kind.ALIAS:
            state.aliases[ino, words[at + 2], words[at + 3]] = words[at + 4]


def _intent(record: bytes) -> Intent:
    opcode, pid, ino, parent, new_parent = memoryview(record[8:48]).cast("Q")
    name, _, new_name = record[48:].partition(b"\0")
    return Intent(opcode, pid, ino, parent, name, new_parent, new_name)
