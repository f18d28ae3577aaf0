"""The pod's log: a file of the host, the output of what `launcher start` started."""

import os
import stat as mode_bits

import msgspec

from ckpt.kinds import flags
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile


class State(msgspec.Struct, frozen=True):
    """Nothing but that it is the log: the restarted pod has its own."""


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    if not mode_bits.S_ISREG(source.stat.st_mode):
        return False
    try:
        return os.path.samestat(source.stat, os.stat(dump.log_path))
    except FileNotFoundError:
        return False


def collect(source: Source, dump: Dump) -> State:
    """See protocol.FileKind."""
    return State()


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind.

    Always to the end: other programs write to the log, too.
    """
    # O_NOFOLLOW said how the name was opened; /proc offers the file as a link.
    status = (flags.open_flags(file.flags) | os.O_APPEND) & ~(flags.O_ASYNC | os.O_NOFOLLOW)
    here = f"self/fd/{workshop.log_fd}"
    return os.open(here, status | os.O_CLOEXEC, dir_fd=workshop.host_proc_fd)
