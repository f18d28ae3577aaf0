"""Open files below /proc/PID, which only exist when the process does: proc(5).

The namespaces below /proc/PID/ns are not on that file system, but opened there.
"""

import os

import msgspec

from ckpt.kinds import abi, flags, late, location, mounts
from ckpt.kinds.protocol import Dump, Remote, Source, Workshop
from ckpt.kinds.regular import position
from ckpt.model import OpenFile


class State(msgspec.Struct, frozen=True):
    """Its path in the pod, and the file offset."""

    path: bytes
    position: int


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    if _namespace(source, dump) is not None:
        return True
    mount = next((m for m in dump.mounts().values() if m.device == source.stat.st_dev), None)
    if mount is None or mount.fstype != "proc":
        return False
    return mounts.is_own(mount) or late.OF_PROCESS.fullmatch(source.link) is not None


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    namespace = _namespace(source, dump)
    if namespace is not None:
        return State(namespace, 0)
    if late.OF_PROCESS.fullmatch(source.link) is None:
        dump.refuse(source, "it is in a proc file system that the pod has mounted itself")
        return None
    if source.fd < 0:
        dump.refuse(source, "it is below /proc")
        return None
    path = os.fsencode(source.link)
    if not location.leads_to(path, source.stat, dump.pod_root_fd):
        dump.refuse(source, "its process has ended")
        return None
    return State(path, position(source))


def _namespace(source: Source, dump: Dump) -> bytes | None:
    """Return where a process finds the namespace *source*, if that is the pod's."""
    match = late.NAMESPACE.fullmatch(source.link)
    if match is None:
        return None
    of_pod = os.readlink(f"/proc/{dump.init_host_pid}/ns/{match[1]}")
    return f"/proc/self/ns/{match[1]}".encode() if of_pod == source.link else None


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
