"""Anonymous files in memory: memfd_create(2)."""

import fcntl
import os
import re
from typing import Final

import msgspec

from ckpt.kinds import flags, hugepages
from ckpt.kinds.content import (
    Attributes,
    Content,
    collect_attributes,
    collect_content,
    rebuild_attributes,
    rebuild_content,
)
from ckpt.kinds.protocol import Dump, Remote, Source, Workshop
from ckpt.kinds.regular import position, reopen
from ckpt.model import OpenFile

_NAME: Final = re.compile(r"/memfd:(.*) \(deleted\)", re.DOTALL)
_FUTURE_WRITE: Final = 0x10
_SEALS: Final = {
    "seal": fcntl.F_SEAL_SEAL,
    "shrink": fcntl.F_SEAL_SHRINK,
    "grow": fcntl.F_SEAL_GROW,
    "write": fcntl.F_SEAL_WRITE,
    "future_write": _FUTURE_WRITE,
    "exec": 0x20,
}


class State(msgspec.Struct, frozen=True):
    """An open memfd: the object, the file offset, and the seals that have to wait.

    Attributes:
        memfd: the object.
        position: file offset.
        late_seals: to be set when all mappings exist: after F_SEAL_FUTURE_WRITE none can be made.
    """

    memfd: int
    position: int
    late_seals: list[str]


class ObjectState(msgspec.Struct, frozen=True):
    """A memfd.

    Attributes:
        name: as given to memfd_create(2).
        attributes: owner and permissions.
        content: what is in it.
        seals: fcntl(2), "File Sealing", in lower case, without the prefix.
        huge: bytes of a page, where they are huge ones (MFD_HUGETLB).
    """

    name: bytes
    attributes: Attributes
    content: Content
    seals: list[str]
    huge: int = 0


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    if not source.link.startswith("/memfd:"):
        return False
    usual = source.stat.st_dev == dump.once("memfd", device)
    return usual or hugepages.size_of(source.local_fd) > 0


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    fd = os.open(f"/proc/self/fd/{source.local_fd}", os.O_RDONLY | os.O_NOATIME)
    try:
        seals = flags.bit_names(fcntl.fcntl(fd, fcntl.F_GET_SEALS), _SEALS)
        late = [name for name in seals if name in {"future_write", "seal"}]
        if "future_write" not in seals:
            late = []
        number, new = dump.object_id("memfd", source.stat.st_ino)
        if new:
            match = _NAME.fullmatch(source.link)
            name = os.fsencode(match[1]) if match else b""
            stat, huge = os.fstat(fd), hugepages.size_of(fd)
            collect = hugepages.collect_content if huge else collect_content
            content = collect(fd, stat.st_size, dump)
            early = [seal for seal in seals if seal not in late]
            state = ObjectState(name, collect_attributes(fd, stat), content, early, huge)
            dump.set_object(number, state)
    except ValueError as e:
        dump.refuse(source, f"it is sealed with {e}")
        return None
    finally:
        os.close(fd)
    return State(number, position(source), late)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    status = flags.open_flags(file.flags) & ~flags.O_ASYNC
    made: _Made = workshop.object(state.memfd)
    if made.first is not None and status & os.O_ACCMODE == os.O_RDWR:
        fd, made.first = made.first, None
        fcntl.fcntl(fd, fcntl.F_SETFL, status)
    else:
        fd = reopen(made.path, status, workshop)
    if state.position:
        os.lseek(fd, state.position, os.SEEK_SET)
    return fd


class _Made(msgspec.Struct):
    """A memfd that was made.

    Attributes:
        path: descriptor of it, O_PATH.
        first: what memfd_create(2) gave, for the first that has it open in that way: unlike those
            that open it again it does not count as somebody who writes, and so does not keep it
            from being executed (mm/shmem.c, __shmem_file_setup(); ETXTBSY in execve(2)).
    """

    path: int
    first: int | None


def rebuild_object(state: ObjectState, workshop: Workshop) -> _Made:
    """Make the memfd."""
    name = os.fsdecode(state.name)
    huge = hugepages.memfd_flags(state.huge)
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | huge)
    fill = hugepages.rebuild_content if state.huge else rebuild_content
    fill(state.content, fd, workshop)
    rebuild_attributes(state.attributes, fd)
    if state.seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, flags.bits(state.seals, _SEALS))
    os.lseek(fd, 0, os.SEEK_SET)
    path_fd = workshop.temporary(reopen(fd, os.O_PATH, workshop))
    workshop.temporary(fd)
    return _Made(path_fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))


def finish(state: State, file: OpenFile, fd: int, remote: Remote) -> None:
    """See protocol.Finishing."""
    if state.late_seals and "rdwr" in file.flags:
        seals = flags.bits(state.late_seals, _SEALS)
        try:
            remote.syscall("fcntl", fd, fcntl.F_ADD_SEALS, seals)
        except PermissionError:  # sealed by another descriptor already
            return


def device() -> int:
    """Return the device number of the kernel's own tmpfs."""
    fd = os.memfd_create("")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)
