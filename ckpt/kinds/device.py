"""Character devices without a state of their own.

The devices are those that the launcher makes in every pod; any other is refused, for what a
driver keeps about an open device is out of reach.
"""

import os
import stat as mode_bits
from typing import Final

import msgspec

from ckpt.kinds import abi, flags, late, location
from ckpt.kinds.protocol import Dump, Remote, Source, Workshop
from ckpt.model import OpenFile

_DEVICES: Final = {
    os.makedev(1, 3): "null",
    os.makedev(1, 5): "zero",
    os.makedev(1, 7): "full",
    os.makedev(1, 8): "random",
    os.makedev(1, 9): "urandom",
    os.makedev(5, 0): "tty",
}
# Source: Documentation/admin-guide/devices.txt.


class State(msgspec.Struct, frozen=True):
    """A device.

    Attributes:
        name: "null", "zero", "full", "random", "urandom" or "tty".
        path: by which it was opened; None if it is not found there any more.
    """

    name: str
    path: bytes | None


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    stat = source.stat
    is_device = mode_bits.S_ISCHR(stat.st_mode) and stat.st_rdev in _DEVICES
    return is_device and not source.flags & os.O_PATH


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    path = None
    if location.is_inside(source, dump):
        path = location.locate(os.fsencode(source.link), source.stat, dump)
    return State(_DEVICES[source.stat.st_rdev], path)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    if state.name == "tty":
        return late.placeholder()
    status = flags.open_flags(file.flags) & ~flags.O_ASYNC
    fd = location.open_in_pod(None, _path(state), status)
    if _DEVICES.get(os.fstat(fd).st_rdev) != state.name:
        os.close(fd)
        raise ValueError(f"{_path(state)!r} is not the device {state.name!r} any more")
    return fd


def finish(state: State, file: OpenFile, fd: int, remote: Remote) -> None:
    """See protocol.Finishing."""
    if state.name == "tty":
        status = flags.open_flags(file.flags) & ~flags.O_ASYNC
        new = remote.syscall("openat", abi.AT_FDCWD, _path(state) + b"\0", status, 0)
        late.replace(fd, new, remote)


def _path(state: State) -> bytes:
    return state.path or b"/dev/" + state.name.encode()
