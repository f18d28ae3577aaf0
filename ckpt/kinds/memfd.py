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
# What F_SETFL can give to a descriptor: fcntl(2).
_SETTABLE: Final = os.O_RDWR | os.O_APPEND | os.O_DIRECT | os.O_NOATIME | os.O_NONBLOCK
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
        original: is it what memfd_create(2) gave? For execve(2) nobody has that open for writing.
    """

    memfd: int
    position: int
    late_seals: list[str]
    original: bool = False


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
    return State(number, position(source), late, _is_original(source, dump))


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    status = flags.open_flags(file.flags) & ~flags.O_ASYNC
    made = workshop.object(state.memfd)
    if state.original and not status & ~_SETTABLE:
        fd = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 0)
        if status != os.O_RDWR:
            fcntl.fcntl(fd, fcntl.F_SETFL, status)
    else:
        fd = reopen(made, status, workshop)
    if state.position:
        os.lseek(fd, state.position, os.SEEK_SET)
    return fd


def rebuild_object(state: ObjectState, workshop: Workshop) -> int:
    """Make the memfd; return a descriptor of it."""
    name = os.fsdecode(state.name)
    huge = hugepages.memfd_flags(state.huge)
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | huge)
    fill = hugepages.rebuild_content if state.huge else rebuild_content
    fill(state.content, fd, workshop)
    rebuild_attributes(state.attributes, fd)
    if state.seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, flags.bits(state.seals, _SEALS))
    return workshop.temporary(fd)


def finish(state: State, file: OpenFile, fd: int, remote: Remote) -> None:
    """See protocol.Finishing."""
    if state.late_seals and "rdwr" in file.flags:
        seals = flags.bits(state.late_seals, _SEALS)
        try:
            remote.syscall("fcntl", fd, fcntl.F_ADD_SEALS, seals)
        except PermissionError:  # sealed by another descriptor already
            return


def _is_original(source: Source, dump: Dump) -> bool:
    """Is *source* to be what memfd_create(2) gives?

    The kernel does not tell it from one that was opened by /proc. Of several it does not matter
    which it is, for they differ only in what they count. A mapping of the file is no other.
    """
    if source.flags & os.O_ACCMODE != os.O_RDWR:
        return False
    return source.fd < 0 or source.id in dump.once("memfd originals", lambda: _first_writing(dump))


def _first_writing(dump: Dump) -> set[int]:
    """Return one descriptor's open file of each memfd, of those for reading and writing."""
    found: dict[tuple[int, int], int] = {}
    for source in dump.sources():
        if source.fd >= 0 and source.flags & os.O_ACCMODE == os.O_RDWR and recognises(source, dump):
            found.setdefault((source.stat.st_dev, source.stat.st_ino), source.id)
    return set(found.values())


def device() -> int:
    """Return the device number of the kernel's own tmpfs."""
    fd = os.memfd_create("")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)
