"""Signals that are read as files: signalfd(2). The signals themselves are the processes'."""

import os
import re
from typing import Final

import msgspec

from ckpt.kinds import abi, flags
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_MASK: Final = re.compile(r"^sigmask:\t([0-9a-f]+)$", re.MULTILINE)


class State(msgspec.Struct, frozen=True):
    """The signals that it takes, by name."""

    signals: list[str]


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return source.link == "anon_inode:[signalfd]"


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    mask = _MASK.search(source.fdinfo)
    if mask is None:
        dump.refuse(source, "the kernel does not tell its signals")
        return None
    return State(flags.signal_set(int(mask[1], 16)))


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    fd = abi.signalfd(flags.signal_mask(state.signals))
    os.set_blocking(fd, not flags.open_flags(file.flags) & os.O_NONBLOCK)
    return fd
