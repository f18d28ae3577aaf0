"""Who gets a signal when a file becomes ready: fcntl(2), "Managing signals"."""

import fcntl
import os
import struct
from typing import Final

import msgspec

from ckpt.kinds import abi, flags
from ckpt.kinds.protocol import Dump, Remote, Source

_TYPES: Final = {"tid": abi.F_OWNER_TID, "pid": abi.F_OWNER_PID, "pgrp": abi.F_OWNER_PGRP}
_F_SETSIG: Final = 10
_F_GETSIG: Final = 11
_OWNER: Final = struct.Struct("ii")


class State(msgspec.Struct, frozen=True):
    """The owner of an open file.

    Attributes:
        type: "tid", "pid" or "pgrp".
        id: as the type says, in the pod; 0 for none.
        signal: its name; None for the default, SIGIO.
        enabled: is O_ASYNC on?
    """

    type: str
    id: int
    signal: str | None
    enabled: bool


def collect_attribute(source: Source, dump: Dump) -> State | None:
    """See protocol.AttributeKind."""
    if source.flags & os.O_PATH:
        return None
    raw = fcntl.fcntl(source.local_fd, abi.F_GETOWN_EX, bytes(_OWNER.size))
    kind, host_id = _OWNER.unpack(raw)
    number = fcntl.fcntl(source.local_fd, _F_GETSIG)
    enabled = bool(source.flags & flags.O_ASYNC)
    if not (host_id or number or enabled):
        return None
    owner = dump.pid_in_pod(host_id) if host_id else 0
    if owner is None:
        dump.refuse(source, "its signals go to a process that has ended, or is outside of the pod")
        return None
    name = next(name for name, value in _TYPES.items() if value == kind)
    return State(name, owner, flags.signal_name(number) if number else None, enabled)


def rebuild_attribute(state: State, fd: int) -> None:
    """See protocol.AttributeKind: the owner does not exist yet."""


def finish_attribute(state: State, fd: int, remote: Remote) -> None:
    """See protocol.AttributeKind."""
    if state.signal is not None:
        remote.syscall("fcntl", fd, _F_SETSIG, flags.signal_number(state.signal))
    if state.id:
        owner = _OWNER.pack(_TYPES[state.type], state.id)
        remote.syscall("fcntl", fd, abi.F_SETOWN_EX, owner)
    if state.enabled:
        status = remote.syscall("fcntl", fd, fcntl.F_GETFL, 0)
        remote.syscall("fcntl", fd, fcntl.F_SETFL, status | flags.O_ASYNC)
