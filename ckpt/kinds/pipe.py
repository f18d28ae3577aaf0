"""Pipes and named fifos: pipe(7), fifo(7).

The pipe itself is an object; its ends are open files: the two that pipe2(2) gives, and those which
somebody opened through /proc. What is in the pipe is copied with tee(2), which consumes nothing.
"""

import array
import contextlib
import errno
import fcntl
import os
import select
import stat as mode_bits
import termios
from typing import NamedTuple

import msgspec

from ckpt.kinds import abi, flags, ghost, location, unixqueue
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_HINT = "start the program with `launcher start`, whose output goes to the pod's log"
_PACKET_BYTES = 4096  # the kernel splits what is longer: pipe(2), O_DIRECT


class State(msgspec.Struct, frozen=True):
    """An end of a pipe; the access mode in the file's flags says which.

    Attributes:
        pipe: the object.
        opened: is it not one of those which came with the pipe? Such have O_LARGEFILE.
    """

    pipe: int
    opened: bool = False


class ObjectState(msgspec.Struct, frozen=True):
    """A pipe.

    Attributes:
        path: of a named fifo, absolute, in the pod; None for a pipe.
        capacity: bytes (fcntl(2), F_GETPIPE_SZ).
        uid, gid, mode: of its inode: who may open it through /proc.
        chunks: lengths of the pieces in it: of the packets in packet mode, else one or none.
        packets: are they packets?
        first_page: of the content in the archive.
        first_writer: has it never had a writer? Then readers wait instead of seeing the end.
        removed: was *path* removed?
    """

    path: bytes | None
    capacity: int
    uid: int
    gid: int
    mode: int
    chunks: list[int]
    packets: bool
    first_page: int
    first_writer: bool
    removed: bool = False


class _Pipe(NamedTuple):
    """A pipe in the workshop: its inode, and the ends that came with it, by access mode."""

    inode_fd: int
    ends: dict[int, int]


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return mode_bits.S_ISFIFO(source.stat.st_mode) and not source.flags & os.O_PATH


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    number, new = dump.object_id("pipe", _inode(source))
    opened = bool(source.flags & flags.LARGEFILE)
    if not new:
        return State(number, opened)
    path, removed = None, False
    if not source.link.startswith("pipe:["):
        link = os.fsencode(source.link)
        path = location.locate(link, source.stat, dump)
        if path is None and source.stat.st_nlink == 0 and location.is_inside(source, dump):
            path, removed = location.removed_name(link), True
        if path is None:
            dump.refuse(source, "it is a fifo without a name in the pod")
            return None
    ends = dump.once("pipes", lambda: _ends(dump))[_inode(source)]
    reader = next((s for s in ends if _reads(s)), None)
    writer = next((s for s in ends if _writes(s)), None)
    if path is None and _other_end_is_outside(reader, writer):
        if not unixqueue.may_hold_more(dump):
            dump.refuse(source, "its other end is held outside of the pod", _HINT)
        return None
    try:
        # While the pod runs the content comes and goes under our hands.
        read = None if dump.looking_only else reader
        chunks, data = _content(read.local_fd) if read else ([], b"")
    except OSError as e:
        dump.refuse(source, f"its content cannot be copied: {e.strerror}")
        return None
    stat = source.stat
    state = ObjectState(
        path=path,
        capacity=fcntl.fcntl(source.local_fd, fcntl.F_GETPIPE_SZ),
        uid=stat.st_uid,
        gid=stat.st_gid,
        mode=mode_bits.S_IMODE(stat.st_mode),
        chunks=chunks,
        packets=len(chunks) > 1 or any(s.flags & os.O_DIRECT for s in ends if _writes(s)),
        first_page=dump.store(data) if data else 0,
        first_writer=reader is not None and writer is None and not _hung_up(reader),
        removed=removed,
    )
    dump.set_object(number, state)
    return State(number, opened)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    pipe: _Pipe = workshop.object(state.pipe)
    status = flags.open_flags(file.flags)
    end = None if state.opened else pipe.ends.pop(status & os.O_ACCMODE, None)
    if end is not None:
        fd = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 0)
    else:
        # Packet mode cannot be asked for at an open of the pipe's inode, only afterwards.
        late = os.O_DIRECT | os.O_NONBLOCK | flags.O_ASYNC
        here = f"self/fd/{pipe.inode_fd}"
        mode = (status & ~late) | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(here, mode, dir_fd=workshop.host_proc_fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, status & ~flags.O_ASYNC)
    return fd


def rebuild_object(state: ObjectState, workshop: Workshop) -> _Pipe:
    """Make the pipe.

    Both ends are held open until everything is rebuilt, so that no open blocks and nothing in
    the pipe is lost.
    """
    if state.path is not None:
        inode_fd = workshop.temporary(_open_fifo(state, state.path, workshop))
        if state.first_writer:
            return _Pipe(inode_fd, {})
        here = f"self/fd/{inode_fd}"
        # Both at once never blocks (fifo(7), "Under Linux").
        both = os.open(here, os.O_RDWR | os.O_CLOEXEC, dir_fd=workshop.host_proc_fd)
        made = _Pipe(inode_fd, {})
        into = workshop.temporary(both)
    else:
        out, into = map(workshop.temporary, os.pipe2(os.O_CLOEXEC))
        made = _Pipe(out, {os.O_RDONLY: out, os.O_WRONLY: into})
        os.fchown(out, state.uid, state.gid)
        os.fchmod(out, state.mode)
    _fill(state, into, workshop)
    return made


def _open_fifo(state: ObjectState, path: bytes, workshop: Workshop) -> int:
    """Return a descriptor of the inode; where the name was removed, it is made."""
    if not state.removed:
        return location.open_in_pod(None, path, os.O_PATH)
    with ghost.lent_name(*os.path.split(path), workshop) as (directory_fd, name):
        os.mkfifo(name, 0o600, dir_fd=directory_fd)
        os.chown(name, state.uid, state.gid, dir_fd=directory_fd)
        os.chmod(name, state.mode, dir_fd=directory_fd)
        return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory_fd)


def _fill(state: ObjectState, fd: int, workshop: Workshop) -> None:
    if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) != state.capacity:
        with contextlib.suppress(PermissionError):  # more than pipe-max-size: then it stays small
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, state.capacity)
    data = memoryview(workshop.load(state.first_page, sum(state.chunks)) if state.chunks else b"")
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if state.packets else 0))
    for length in state.chunks:
        if os.write(fd, data[:length]) != length:
            raise OSError(errno.ENOSPC, "write: a pipe is too small for what was in it")
        data = data[length:]


def _ends(dump: Dump) -> dict[tuple[int, int], list[Source]]:
    """Return the open ends of all pipes and fifos."""
    found: dict[tuple[int, int], list[Source]] = {}
    for source in dump.sources():
        if recognises(source, dump):
            found.setdefault(_inode(source), []).append(source)
    return found


def _inode(source: Source) -> tuple[int, int]:
    return source.stat.st_dev, source.stat.st_ino


def _reads(source: Source) -> bool:
    return source.flags & os.O_ACCMODE in {os.O_RDONLY, os.O_RDWR}


def _writes(source: Source) -> bool:
    return source.flags & os.O_ACCMODE in {os.O_WRONLY, os.O_RDWR}


def _hung_up(source: Source) -> bool:
    """Has the end nobody on the other side? Source: poll(2), POLLHUP and POLLERR."""
    poll = select.poll()
    poll.register(source.local_fd, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def _other_end_is_outside(reader: Source | None, writer: Source | None) -> bool:
    if reader and writer:
        return False
    end = reader or writer
    return end is not None and not _hung_up(end)


def _content(fd: int) -> tuple[list[int], bytes]:
    """Return the lengths of what single reads would give, and the data."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    if not count[0]:
        return [], b""
    out, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ))
        abi.tee(fd, into, count[0])
        chunks = []
        with contextlib.suppress(BlockingIOError):
            # A read ends at the end of a packet: pipe(2), O_DIRECT.
            while True:
                chunks.append(os.read(out, count[0]))
    finally:
        os.close(out)
        os.close(into)
    return [len(chunk) for chunk in chunks], b"".join(chunks)
