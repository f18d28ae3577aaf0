"""Event counters: eventfd(2)."""

import os
import re
import struct
from typing import Final

import msgspec

from ckpt.kinds import flags
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_COUNT: Final = re.compile(r"^eventfd-count: *([0-9a-f]+)$", re.MULTILINE)
_SEMAPHORE: Final = re.compile(r"^eventfd-semaphore: *(\d)$", re.MULTILINE)


class State(msgspec.Struct, frozen=True):
    """The counter, and whether a read takes one (EFD_SEMAPHORE) or all."""

    count: int
    semaphore: bool


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return source.link == "anon_inode:[eventfd]"


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    count, semaphore = _COUNT.search(source.fdinfo), _SEMAPHORE.search(source.fdinfo)
    if count is None:
        dump.refuse(source, "the kernel does not tell its count")
        return None
    # Before Linux v6.5 nothing tells a semaphore from the far commoner plain counter.
    return State(int(count[1], 16), semaphore is not None and semaphore[1] == "1")


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    mode = os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if state.semaphore else 0)
    fd = os.eventfd(0, mode | flags.open_flags(file.flags) & os.O_NONBLOCK)
    if state.count:
        os.write(fd, struct.pack("Q", state.count))
    return fd
