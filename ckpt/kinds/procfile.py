"""Open files below /proc/PID, which only exist when the process does: proc(5)."""

import os

import msgspec

from ckpt.kinds import abi, flags, late, location, mounts
from ckpt.kinds.protocol import Dump, Remote, Source, Workshop
from ckpt.kinds.regular import position
from ckpt.model import OpenFile

_GONE = " (deleted)"
_ENDED = "it is of a process that has ended"


class State(msgspec.Struct, frozen=True):
    """Its path in the pod, and the file offset."""

    path: bytes
    position: int


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    mount = next((m for m in dump.mounts().values() if m.device == source.stat.st_dev), None)
    if mount is None or mount.fstype != "proc":
        return False
    of_process = late.OF_PROCESS.fullmatch(source.link) is not None
    return of_process or mounts.is_own(mount) or source.link.endswith(_GONE)


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    if source.link.endswith(_GONE):
        dump.refuse(source, _ENDED)
        return None
    if late.OF_PROCESS.fullmatch(source.link) is None:
        dump.refuse(source, "it is in a proc file system that the pod has mounted itself")
        return None
    if source.fd < 0:
        dump.refuse(source, "it is below /proc")
        return None
    try:
        os.close(location.open_in_pod(dump.pod_root_fd, os.fsencode(source.link), os.O_PATH))
    except (FileNotFoundError, ProcessLookupError):
        dump.refuse(source, _ENDED)
        return None
    return State(os.fsencode(source.link), position(source))


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    return late.placeholder()


def finish(state: State, file: OpenFile, fd: int, remote: Remote) -> None:
    """See protocol.Finishing."""
    status = flags.open_flags(file.flags) & ~flags.O_ASYNC
    new = remote.syscall("openat", abi.AT_FDCWD, state.path + b"\0", status, 0)
    if state.position:
        remote.syscall("lseek", new, state.position, os.SEEK_SET)
    late.replace(fd, new, remote)
