"""What a page server (ckpt/pageserver.py) must not forget when it is killed.

It is in memory that its guard shares. Between any two instructions of the server it tells the one
that comes after it all that matters:

* the *state* of all memory that has not arrived, as it was when the last changes had been noted.
  A new one is written beside the old one, and becomes the state by one store to memory.
* the *messages* that were read of the kernel since. The kernel forgets a message that was read, so
  it is read into the ledger itself, behind a number that says which state it belongs to.

What has arrived since may be absent in the state: to copy a page once more does nothing, and what
was freed or moved has been told.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from ckpt import userfault
from ckpt.userfault import Change, Fork, Message

_HEADER: Final = 4096
_SLOT: Final = struct.Struct(
    "<"
    "Q"  # the state that it comes after
    "I"  # the descriptor that it was read of
    "I"  # Known
)
_SLOT_SIZE: Final = 64
_MESSAGE_AT: Final = 32
_SLOTS: Final = 4096
_STATE, _HELD, _LIFE = range(3)
"""Words of the header."""

_BEGUN, _SERVING, _OVER, _FAILED = range(4)


class Range(msgspec.Struct, frozen=True, array_like=True):
    """Addresses from *start* to *end* are to hold pages from number *first* on."""

    start: int
    end: int
    first: int


class Memory(msgspec.Struct, frozen=True, array_like=True):
    """The memory of a process: its descriptor, its pid, if that is known, and what is absent."""

    fd: int
    host_pid: int | None
    absent: list[Range]


class State(msgspec.Struct, frozen=True, array_like=True):
    """All of the pod's memory that has not arrived, and how fast what nobody waits for is to."""

    memories: list[Memory]
    rate: int | None


class Read(msgspec.Struct, frozen=True):
    """A message that was read.

    Attributes:
        fd: of which descriptor.
        change: what it tells.
        certain: could nobody build upon what it tells before it was read?
    """

    fd: int
    change: Change
    certain: bool


class Ledger:
    """Made by the first server, for all processes that are forked from it."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _HEADER + _SLOTS * _SLOT_SIZE, mmap.MAP_SHARED)
        for page in range(0, len(self._map), mmap.PAGESIZE):
            self._map[page] = 0  # it is there when the kernel writes to it
        self._words = memoryview(self._map)[:_HEADER].cast("Q")
        self._files = [os.memfd_create("pages", os.MFD_CLOEXEC) for _ in range(2)]
        self._used = 0

    def descriptors(self) -> list[int]:
        """Return the descriptors that belong to it, and those that it tells of."""
        state, read = self._recall()
        told = [one.change.fd for one in read if isinstance(one.change, Fork)]
        return [*self._files, *(memory.fd for memory in state.memories), *told]

    @property
    def is_serving(self) -> bool:
        """May the pod run, and is something to come? Then another server can go on with it."""
        return self._words[_LIFE] == _SERVING

    @property
    def is_over(self) -> bool:
        """Is nothing to come any more?"""
        return self._words[_LIFE] == _OVER

    def begin(self, state: State) -> None:
        """Note that all is known, so that the pod may be let go."""
        self.note(state)
        self._words[_LIFE] = _SERVING

    def end(self, *, failed: bool) -> None:
        """Note that nothing is to come, or that it cannot."""
        self._words[_LIFE] = _FAILED if failed else _OVER

    @property
    def held(self) -> bool:
        """Is the pod kept from going on by a server?"""
        return bool(self._words[_HELD])

    def hold(self, held: bool) -> None:
        """Note whether it is."""
        self._words[_HELD] = held

    def note(self, state: State) -> None:
        """Have *state* be what is known; all that was read is in it."""
        number = self._words[_STATE] + 1
        fd, data = self._files[number % 2], msgspec.msgpack.encode(state)
        os.ftruncate(fd, len(data))
        if os.pwrite(fd, data, 0) != len(data):
            raise OSError("the ledger of absent memory cannot be written")
        self._words[_STATE] = number
        self._used = 0

    def read(self, fd: int, *, certain: bool) -> Message | None:
        """Read a message of a descriptor of userfaultfd(2), as userfault.read().

        A fault need not be remembered: who waits is woken, and faults once more.
        """
        if self._used == _SLOTS:
            raise OSError("more changes of memory at once than can be noted")
        at = _HEADER + self._used * _SLOT_SIZE
        end = at + _MESSAGE_AT + userfault.MESSAGE.size
        self._map[at + _MESSAGE_AT : end] = bytes(userfault.MESSAGE.size)
        _SLOT.pack_into(self._map, at, self._words[_STATE], fd, certain)
        with memoryview(self._map)[at + _MESSAGE_AT : end] as place:
            message = userfault.read(fd, place)
        if message is not None and not isinstance(message, userfault.Fault):
            self._used += 1
        return message

    def recall(self) -> tuple[State, list[Read]]:
        """Return the state, and which changes were read since."""
        state, read = self._recall()
        self._used = len(read)
        return state, read

    def _recall(self) -> tuple[State, list[Read]]:
        number = self._words[_STATE]
        fd = self._files[number % 2]
        state = msgspec.msgpack.decode(os.pread(fd, os.fstat(fd).st_size, 0), type=State)
        return state, list(self._read_since(number))

    def _read_since(self, number: int) -> Iterator[Read]:
        for at in range(_HEADER, len(self._map), _SLOT_SIZE):
            state, fd, certain = _SLOT.unpack_from(self._map, at)
            message = userfault.parse(self._map[at + _MESSAGE_AT : at + _SLOT_SIZE])
            if state != number or message is None or isinstance(message, userfault.Fault):
                return
            yield Read(fd, message, bool(certain))
