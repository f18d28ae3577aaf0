"""Files of the pod's file systems: regular files, directories, and anything opened with O_PATH.

A file that has a name in the pod is opened by it again: its content travels with the pod's
file-system layers. One whose last name is gone is a *ghost*: its content travels as an object
that all its opens and mappings share, and is rebuilt without a name on the same file system.
"""

import contextlib
import os
import stat as mode_bits
from typing import Final

import msgspec

from ckpt.kinds import flags, ghost, location, procinfo
from ckpt.kinds.content import (
    Attributes,
    Content,
    collect_attributes,
    collect_content,
    rebuild_attributes,
    rebuild_content,
)
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_OUTSIDE: Final = "it is not below the pod's root"
_OUTSIDE_HINT: Final = "start the program with `launcher start`, whose output goes to the pod's log"
_PLAIN: Final = (mode_bits.S_IFREG, mode_bits.S_IFDIR)


class State(msgspec.Struct, frozen=True):
    """A file by its name, or as a ghost.

    Attributes:
        path: absolute, in the pod; None if it has no name any more.
        ghost: the object that holds it then.
        type: "file", "directory" or "other" (only with the flag "path").
        position: file offset; of a directory, what its file system means by it.
    """

    path: bytes | None
    ghost: int | None
    type: str
    position: int


class ObjectState(msgspec.Struct, frozen=True):
    """A ghost.

    Attributes:
        directory: where its last name was; the file system to rebuild it on.
        attributes: owner, permissions, times.
        content: of a regular file.
        name: the last one; None if it was made without one (O_TMPFILE).
        target: of a symbolic link.
    """

    directory: bytes
    attributes: Attributes
    content: Content | None
    name: bytes | None = None
    target: bytes | None = None


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    if not source.link.startswith("/"):
        return False  # of a file system that nobody can mount: a namespace, …
    return mode_bits.S_IFMT(source.stat.st_mode) in _PLAIN or bool(source.flags & os.O_PATH)


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    if not location.is_inside(source, dump):
        dump.refuse(source, _OUTSIDE, _OUTSIDE_HINT)
        return None
    link = os.fsencode(source.link)
    kind = _type(source.stat.st_mode)
    offset = position(source)
    path = location.locate(link, source.stat, dump)
    if path is not None:
        return State(path, None, kind, offset)
    if source.stat.st_nlink > 0 and kind != "directory":
        dump.refuse(source, "its name was removed, and its other name was not found")
        return None
    if kind == "other" and not mode_bits.S_ISLNK(source.stat.st_mode):
        dump.refuse(source, "it has no name any more")
        return None
    return State(None, _ghost(source, dump), kind, offset)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    status = flags.open_flags(file.flags) & ~(flags.O_TMPFILE_BIT | flags.O_ASYNC)
    if state.path is not None:
        fd = location.open_in_pod(None, state.path, status)
    else:
        if state.type == "file":
            status &= ~os.O_DIRECTORY  # a part of O_TMPFILE
        fd = reopen(workshop.object(_known(state.ghost)), status & ~os.O_NOFOLLOW, workshop)
    found = _type(os.fstat(fd).st_mode)
    if found != state.type:
        os.close(fd)
        raise ValueError(f"{state.path!r} is a {found}, no longer a {state.type}")
    if state.position and not status & os.O_PATH:
        os.lseek(fd, state.position, os.SEEK_SET)
    return fd


def rebuild_object(state: ObjectState, workshop: Workshop) -> int:
    """Make the ghost; return an O_PATH descriptor of it.

    No descriptor for writing stays: the file may be a program (execve(2), ETXTBSY).
    """
    with ghost.lent_name(state.directory, state.name, workshop) as (directory_fd, name):
        if state.target is not None:
            return workshop.temporary(_make_link(state, state.target, directory_fd, name))
        fd = _make(state, directory_fd, name)
        try:
            if state.content is not None:
                rebuild_content(state.content, fd, workshop)
            rebuild_attributes(state.attributes, fd)
            return workshop.temporary(reopen(fd, os.O_PATH, workshop))
        finally:
            os.close(fd)


def position(source: Source) -> int:
    """Return the file offset of *source*."""
    return procinfo.parse_fdinfo(source.fdinfo.encode()).position if source.fd >= 0 else 0


def reopen(fd: int, status: int, workshop: Workshop) -> int:
    """Open the workshop's *fd* once more: a new description of the same inode."""
    return os.open(f"self/fd/{fd}", status | os.O_CLOEXEC, dir_fd=workshop.host_proc_fd)


def _known(number: int | None) -> int:
    if number is None:
        raise ValueError("a file with neither name nor content")
    return number


def _type(mode: int) -> str:
    if mode_bits.S_ISREG(mode):
        return "file"
    return "directory" if mode_bits.S_ISDIR(mode) else "other"


def _ghost(source: Source, dump: Dump) -> int:
    key = (source.stat.st_dev, source.stat.st_ino)
    number, new = dump.object_id("regular", key)
    if new:
        collect_it = _collect_link if mode_bits.S_ISLNK(source.stat.st_mode) else _collect_ghost
        path = location.removed_name(os.fsencode(source.link))
        dump.set_object(number, collect_it(source, *os.path.split(path), dump))
    return number


def _collect_link(source: Source, directory: bytes, name: bytes, _: Dump) -> ObjectState:
    target = os.readlink(b"", dir_fd=source.local_fd)
    return ObjectState(directory, collect_attributes(None, source.stat), None, name, target)


def _collect_ghost(source: Source, directory: bytes, name: bytes, dump: Dump) -> ObjectState:
    fd = os.open(f"/proc/self/fd/{source.local_fd}", os.O_RDONLY | os.O_NOATIME)
    try:
        stat = os.fstat(fd)
        content = None
        if mode_bits.S_ISREG(stat.st_mode):
            content = collect_content(fd, stat.st_size, dump)
        had_name = (stat.st_dev, stat.st_ino) not in _nameless(dump)
        attributes = collect_attributes(fd, stat)
        return ObjectState(directory, attributes, content, name if had_name else None)
    finally:
        os.close(fd)


def _nameless(dump: Dump) -> set[tuple[int, int]]:
    """Return the files that were made without a name, and can still be given one."""
    return dump.once(
        "nameless",
        lambda: {
            (source.stat.st_dev, source.stat.st_ino)
            for source in dump.sources()
            if _is_unnamed(source)
        },
    )


def _is_unnamed(source: Source) -> bool:
    """Does /proc show the number of the inode for a name (fs/dcache.c, d_mark_tmpfile())?"""
    name = os.path.basename(location.removed_name(os.fsencode(source.link)))
    return name == b"#%d" % source.stat.st_ino


def _make(state: ObjectState, directory_fd: int, name: bytes) -> int:
    """Make the empty ghost, under *name* unless it can do without; open it."""
    if state.content is None:
        os.mkdir(name, 0o700, dir_fd=directory_fd)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory_fd)
    if state.name is None:
        with contextlib.suppress(OSError):  # it needs support in the file system: open(2)
            return os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=directory_fd)
    return os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, dir_fd=directory_fd)


def _make_link(state: ObjectState, target: bytes, directory_fd: int, name: bytes) -> int:
    attributes = state.attributes
    os.symlink(target, name, dir_fd=directory_fd)
    owner = (attributes.uid, attributes.gid)
    os.chown(name, *owner, dir_fd=directory_fd, follow_symlinks=False)
    times = (attributes.atime_ns, attributes.mtime_ns)
    os.utime(name, ns=times, dir_fd=directory_fd, follow_symlinks=False)
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
