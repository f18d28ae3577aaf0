"""Descriptors of processes: pidfd_open(2)."""

import errno
import os
import re
from typing import Final

import msgspec

from ckpt.kinds import flags, late
from ckpt.kinds.protocol import Dump, Remote, Source, Workshop
from ckpt.model import OpenFile

_PID: Final = re.compile(r"^Pid:\t(-?\d+)$", re.MULTILINE)


class State(msgspec.Struct, frozen=True):
    """The process, or with the flag "exclusive" the thread, by its id in the pod."""

    pid: int


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return source.link == late.PIDFD


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    match = _PID.search(source.fdinfo)
    pid = dump.pid_in_pod(int(match[1])) if match else None
    if pid is None:
        dump.refuse(source, "its process has ended, or is outside of the pod")
        return None
    return State(pid)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    return late.placeholder()


def finish(state: State, file: OpenFile, fd: int, remote: Remote) -> None:
    """See protocol.Finishing."""
    status = flags.open_flags(file.flags) & (os.O_NONBLOCK | os.O_EXCL)
    try:
        new = remote.syscall("pidfd_open", state.pid, status)
    except OSError as e:
        if e.errno == errno.ESRCH:
            e.add_note(f"process {state.pid} was not restored")
        raise
    late.replace(fd, new, remote)
