"""File locks: flock(2), fcntl_locking(2); and leases: fcntl(2), "Leases".

flock and open-file-description locks belong to the description: the workshop sets them. A flock
bears the number of who took it, so that process takes it anew, if it still lives. Record
(POSIX) locks belong to the process, which sets its own at the end, for it would lose them with
the next descriptor of the same file that it closes. Leases belong to the description, but are set
at the end, too: one for writing is not to be had while another has the file open.
"""

import fcntl
import os
import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from ckpt.kinds.protocol import Dump, Remote, Source

_LINE: Final = re.compile(
    r"^lock:\t\d+: (\w+) +(\w+) +(\w+) +(-?\d+) ([0-9a-f]+:[0-9a-f]+:\d+) (\d+) (\d+|EOF)$",
    re.MULTILINE,
)
_FLAGS: Final = re.compile(r"^flags:\t0(\d+)$", re.MULTILINE)
_TYPES: Final = {"READ": fcntl.F_RDLCK, "WRITE": fcntl.F_WRLCK}
_F_OFD_SETLK: Final = 37  # <linux/fcntl.h>
_SETTLED: Final = "ACTIVE"  # of a lease: nobody waits for its end
_STRUCT_FLOCK: Final = struct.Struct("hhqqi4x")


class Range(msgspec.Struct, frozen=True):
    """A locked range: "READ" or "WRITE", its first byte, and its length; 0 for no end."""

    type: str
    start: int
    length: int


class State(msgspec.Struct, frozen=True):
    """Locks of an open file description: the flock, the ranges, and the lease."""

    flock: str | None
    ranges: list[Range]
    lease: str | None = None


class Record(msgspec.Struct, frozen=True):
    """A record lock, and a descriptor of the process that can take it."""

    fd: int
    range: Range


class Flock(msgspec.Struct, frozen=True):
    """A flock that a process took, and may have no descriptor of any more.

    Attributes:
        type: "READ" or "WRITE".
        pid, fd: a process that has the description open, and its descriptor.
    """

    type: str
    pid: int
    fd: int


class ProcessState(msgspec.Struct, frozen=True):
    """Record locks of a process, and the flocks that bear its number."""

    records: list[Record]
    flocks: list[Flock] = []


class _Lock(NamedTuple):
    """A line of fdinfo: proc_locks(5)."""

    kind: str
    how: str
    host_pid: int
    range: Range
    inode: str


def collect_attribute(source: Source, dump: Dump) -> State | None:
    """See protocol.AttributeKind."""
    flock, ranges, lease = None, [], None
    for lock in _locks(source.fdinfo):
        if lock.kind == "FLOCK":
            flock = lock.range.type
        elif lock.kind == "OFDLCK":
            ranges.append(lock.range)
        elif lock.kind == "LEASE" and lock.how == _SETTLED:
            lease = lock.range.type
        elif lock.kind == "LEASE":
            dump.refuse(source, "somebody waits for the end of its lease", "try again in a moment")
            return None
        elif lock.kind != "POSIX":
            dump.refuse(source, f"it has a lock of the kind {lock.kind}")
            return None
    return State(flock, ranges, lease) if flock or ranges or lease else None


def rebuild_attribute(state: State, fd: int) -> None:
    """See protocol.AttributeKind."""
    if state.flock is not None:
        fcntl.flock(fd, _flock_mode(state.flock))
    for found in state.ranges:
        fcntl.fcntl(fd, _F_OFD_SETLK, _record(found))


def finish_attribute(state: State, fd: int, remote: Remote) -> None:
    """See protocol.AttributeKind. Who is told of the lease's end, ckpt.kinds.owner sets."""
    if state.lease is not None:
        remote.syscall("fcntl", fd, fcntl.F_SETLEASE, _TYPES[state.lease])


def collect_process(host_pid: int, dump: Dump) -> ProcessState | None:
    """See protocol.ProcessKind."""
    records: dict[tuple[str, int], Record] = {}
    for fd, fdinfo in dump.locked_descriptors(host_pid):
        access = _FLAGS.search(fdinfo)
        mode = int(access[1], 8) & os.O_ACCMODE if access else os.O_RDWR
        unfit = {"WRITE": os.O_RDONLY, "READ": os.O_WRONLY}
        for lock in _locks(fdinfo):
            if lock.kind == "POSIX" and mode != unfit[lock.range.type]:
                records.setdefault((lock.inode, lock.range.start), Record(fd, lock.range))
    flocks = _flocks(host_pid, dump)
    return ProcessState(list(records.values()), flocks) if records or flocks else None


def finish_process(state: ProcessState, remote: Remote) -> None:
    """See protocol.ProcessKind."""
    for flock in state.flocks:
        _take_anew(flock, remote)
    for record in state.records:  # after that: it closes a file
        remote.syscall("fcntl", record.fd, fcntl.F_SETLK, _record(record.range))


def _flocks(host_pid: int, dump: Dump) -> list[Flock]:
    """Return the flocks that bear the number of a process; by its own descriptors, if it can be."""
    found = dump.once("flocks", lambda: _flocked(dump)).get(host_pid)
    if not found:
        return []
    mine = {dump.file_id(host_pid, fd): fd for fd, _ in dump.locked_descriptors(host_pid)}
    pid = dump.pid_in_pod(host_pid)
    return [
        Flock(type_, pid, mine[source.id])
        if pid is not None and source.id in mine
        else Flock(type_, source.pid, source.fd)
        for source, type_ in found
    ]


def _flocked(dump: Dump) -> dict[int, list[tuple[Source, str]]]:
    """Return the open files with a flock, and its type, by whose number it bears."""
    found: dict[int, list[tuple[Source, str]]] = {}
    for source in dump.sources():
        if source.fd >= 0 and not source.in_message:
            for lock in _locks(source.fdinfo):
                if lock.kind == "FLOCK":
                    found.setdefault(lock.host_pid, []).append((source, lock.range.type))
    return found


def _take_anew(flock: Flock, remote: Remote) -> None:
    """Take the flock that the workshop has taken."""
    fd = flock.fd if flock.pid == remote.pid else _borrow(flock, remote)
    if fd is None:
        return
    remote.syscall("flock", fd, fcntl.LOCK_UN)
    remote.syscall("flock", fd, _flock_mode(flock.type))
    if flock.pid != remote.pid:
        remote.syscall("close", fd)


def _borrow(flock: Flock, remote: Remote) -> int | None:
    """Duplicate the descriptor of the other process; None where that cannot be.

    Having entered a user namespace, it may not be looked into; nor if its first thread has ended.
    """
    try:
        pidfd = remote.syscall("pidfd_open", flock.pid, 0)
    except ProcessLookupError:
        return None
    try:
        return remote.syscall("pidfd_getfd", pidfd, flock.fd, 0)
    except (PermissionError, ProcessLookupError):
        return None
    finally:
        remote.syscall("close", pidfd)


def _flock_mode(type_: str) -> int:
    return fcntl.LOCK_NB | (fcntl.LOCK_EX if type_ == "WRITE" else fcntl.LOCK_SH)


def _locks(fdinfo: str) -> Iterator[_Lock]:
    """Return the locks of a descriptor.

    Source: proc_pid_fdinfo(5), proc_locks(5); fs/locks.c, lock_get_status().
    """
    for kind, how, type_, pid, inode, start, end in _LINE.findall(fdinfo):
        length = 0 if end == "EOF" else int(end) - int(start) + 1
        yield _Lock(kind, how, int(pid), Range(type_, int(start), length), inode)


def _record(found: Range) -> bytes:
    return _STRUCT_FLOCK.pack(_TYPES[found.type], os.SEEK_SET, found.start, found.length, 0)
