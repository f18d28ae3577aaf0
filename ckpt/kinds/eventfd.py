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
    number = int(count[1], 16)
    if semaphore is not None:
        return State(number, semaphore[1] == "1")
    return State(number, not dump.looking_only and is_semaphore(source.local_fd, number))


def is_semaphore(fd: int, count: int) -> bool:
    """Find out whether a read takes one of *count* or all; *fd* has the same count afterwards.

    Before Linux v6.5 the kernel does not tell (fs/eventfd.c, eventfd_show_fdinfo()). Whoever else
    has the file is frozen; who is told of events by their edges (EPOLLET) is told of one more.
    """
    if count < 2:  # too little to see a difference
        os.eventfd_write(fd, 2)
    if os.eventfd_read(fd) != 1:
        if count:
            os.eventfd_write(fd, count)
        return False
    if count < 2:
        os.eventfd_read(fd)
    else:
        os.eventfd_write(fd, 1)
    return True


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    mode = os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if state.semaphore else 0)
    fd = os.eventfd(0, mode | flags.open_flags(file.flags) & os.O_NONBLOCK)
    if state.count:
        os.write(fd, struct.pack("Q", state.count))
    return fd
