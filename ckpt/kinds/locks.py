"""File locks: flock(2), fcntl_locking(2); and leases: fcntl(2), "Leases".

flock and open-file-description locks belong to the description: the workshop sets them. Record
(POSIX) locks belong to the process, which sets its own at the end, for it would lose them with
the next descriptor of the same file that it closes. Leases belong to the description, but are set
at the end, too: one for writing is not to be had while another has the file open.
"""

import fcntl
import os
import re
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from ckpt.kinds.protocol import Dump, Remote, Source

_LINE: Final = re.compile(
    r"^lock:\t\d+: (\w+) +(\w+) +(\w+) +-?\d+ ([0-9a-f]+:[0-9a-f]+:\d+) (\d+) (\d+|EOF)$",
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


class ProcessState(msgspec.Struct, frozen=True):
    """Record locks of a process."""

    records: list[Record]


def collect_attribute(source: Source, dump: Dump) -> State | None:
    """See protocol.AttributeKind."""
    flock, ranges, lease = None, [], None
    for kind, how, found, _ in _locks(source.fdinfo):
        if kind == "FLOCK":
            flock = found.type
        elif kind == "OFDLCK":
            ranges.append(found)
        elif kind == "LEASE" and how == _SETTLED:
            lease = found.type
        elif kind == "LEASE":
            dump.refuse(source, "somebody waits for the end of its lease", "try again in a moment")
            return None
        elif kind != "POSIX":
            dump.refuse(source, f"it has a lock of the kind {kind}")
            return None
    return State(flock, ranges, lease) if flock or ranges or lease else None


def rebuild_attribute(state: State, fd: int) -> None:
    """See protocol.AttributeKind."""
    if state.flock is not None:
        mode = fcntl.LOCK_EX if state.flock == "WRITE" else fcntl.LOCK_SH
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    for found in state.ranges:
        fcntl.fcntl(fd, _F_OFD_SETLK, _flock(found))


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
        for kind, _, found, inode in _locks(fdinfo):
            if kind == "POSIX" and mode != unfit[found.type]:
                records.setdefault((inode, found.start), Record(fd, found))
    return ProcessState(list(records.values())) if records else None


def finish_process(state: ProcessState, remote: Remote) -> None:
    """See protocol.ProcessKind."""
    for record in state.records:
        remote.syscall("fcntl", record.fd, fcntl.F_SETLK, _flock(record.range))


def _locks(fdinfo: str) -> Iterator[tuple[str, str, Range, str]]:
    """Return kind, state, range and file of each lock.

    Source: proc_pid_fdinfo(5), proc_locks(5); fs/locks.c, lock_get_status().
    """
    for kind, how, type_, inode, start, end in _LINE.findall(fdinfo):
        length = 0 if end == "EOF" else int(end) - int(start) + 1
        yield kind, how, Range(type_, int(start), length), inode


def _flock(found: Range) -> bytes:
    return _STRUCT_FLOCK.pack(_TYPES[found.type], os.SEEK_SET, found.start, found.length, 0)
