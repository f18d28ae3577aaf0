"""A layer directory from an OCI layer tar, which may be hostile; the form is that of oci.py."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from stackfs.layers import tar, whiteout
from stackfs.layers.copying import read_xattrs
from stackfs.layers.oci import OPAQUE, OWN, PREFIX, LayerError
from stackfs.layers.tar import Member
from stackfs.layers.walk import DIRECTORY, open_beneath
from stackfs.layers.work import remove

_ZEROS: Final = bytes(1 << 16)


def unpack(archive: BinaryIO, directory: str, below: Sequence[int] = ()) -> None:
    """Make a layer directory from an OCI layer tar.

    The archive may be hostile. Everything is made below a fresh, private directory, walked one
    component at a time and never through a symbolic link; it gets its name when all is well.

    Args:
        archive: plain, not compressed.
        directory: not there yet.
        below: O_PATH descriptors of the layers below, top first: a directory that the archive has
            files of, but not itself, is made as it is there.

    Raises:
        TarError: the archive is malformed, or holds what a layer must not have.
        OSError: *directory* exists, or something cannot be written.
    """
    target = Path(directory).absolute()
    if os.path.lexists(target):
        raise FileExistsError(17, "File exists", directory)
    partial = os.fsencode(f".{target.name}.{os.urandom(6).hex()}")
    parent_fd = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.mkdir(partial, 0o700, dir_fd=parent_fd)
        fd = os.open(partial, DIRECTORY, dir_fd=parent_fd)
        try:
            _Unpacker(fd, archive, below).run()
        finally:
            os.close(fd)
        os.rename(partial, target.name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except BaseException:
        remove(parent_fd, partial)
        raise
    finally:
        os.close(parent_fd)


class _Unpacker:
    """What unpacking remembers.

    Attributes:
        made: every path made so far, and its type flag.
        implied: directories that the archive has files of, but not yet themselves.
        directories: their members; times and modes are set when nothing is made in them any more.
    """

    def __init__(self, fd: int, archive: BinaryIO, below: Sequence[int]) -> None:
        self._fd = fd
        self._archive = archive
        self._below = below
        self._implied: set[tuple[bytes, ...]] = set()
        self._made: dict[tuple[bytes, ...], bytes] = {}
        self._directories: dict[tuple[bytes, ...], Member] = {}
        self._open_path: tuple[bytes, ...] = ()
        self._open_fd = os.dup(fd)

    def run(self) -> None:
        try:
            for member in tar.members(self._archive):
                self._unpack(member)
            if any(whiteout.REDIRECT in at.xattrs for at in self._directories.values()):
                os.setxattr(whiteout.inside(self._fd, b"."), whiteout.MOVED, b"y")
            for path in sorted(self._directories, key=len, reverse=True):
                self._finish_directory(path, self._directories[path])
        finally:
            os.close(self._open_fd)

    def _unpack(self, member: Member) -> None:
        path = _components(member.path)
        if not path:
            if member.kind != tar.DIRECTORY:
                raise LayerError("the root is not a directory")
            self._claim(path, member)
            self._directories[path] = member
            return
        self._imply(path[:-1])
        parent_fd, name = self._parent(path[:-1]), path[-1]
        if name.startswith(PREFIX):
            self._unpack_mark(path, parent_fd, member)
            return
        self._claim(path, member)
        self._make(parent_fd, name, path, member)

    def _claim(self, path: tuple[bytes, ...], member: Member) -> None:
        if path in self._made and not (path in self._implied and member.kind == tar.DIRECTORY):
            raise LayerError(f"{member.path!r} is in the archive twice")
        self._made[path] = member.kind

    def _imply(self, path: tuple[bytes, ...]) -> None:
        """Make a directory, and those above it, that no member of the archive is for."""
        if path in self._made:
            return
        for depth in range(1, len(path) + 1):
            at = path[:depth]
            if at not in self._made:
                os.mkdir(at[-1], 0o700, dir_fd=self._parent(at[:-1]))
                self._made[at] = tar.DIRECTORY
                self._implied.add(at)
                self._directories[at] = _as_below(self._below, at)

    def _parent(self, path: tuple[bytes, ...]) -> int:
        """Return a descriptor of a directory made before, valid until the next call."""
        if path != self._open_path:
            if path and self._made.get(path) != tar.DIRECTORY:
                raise LayerError(f"{b'/'.join(path)!r} is not a directory of the archive")
            if path[:-1] == self._open_path:
                fd = os.open(path[-1], DIRECTORY, dir_fd=self._open_fd)
            else:
                fd = open_beneath(self._fd, path)
            os.close(self._open_fd)
            self._open_fd, self._open_path = fd, path
        return self._open_fd

    def _unpack_mark(self, path: tuple[bytes, ...], parent_fd: int, member: Member) -> None:
        """Write a whiteout or an opaque mark."""
        if member.kind != tar.FILE or member.size:
            raise LayerError(f"{member.path!r} is not an empty file")
        name = path[-1]
        if name == OPAQUE:
            whiteout.set_opaque(parent_fd, b".")
            return
        hidden = name[len(PREFIX) :]
        if hidden in (b"", b".", b"..") or hidden.startswith(PREFIX):
            raise LayerError(f"{member.path!r} hides no name")
        self._claim((*path[:-1], hidden), member)
        whiteout.make(parent_fd, hidden)

    def _make(self, dir_fd: int, name: bytes, path: tuple[bytes, ...], member: Member) -> None:
        match member.kind:
            case tar.LINK:
                self._link(dir_fd, name, member)
                return
            case tar.DIRECTORY:
                if path in self._implied:
                    self._implied.remove(path)
                else:
                    os.mkdir(name, 0o700, dir_fd=dir_fd)
                self._directories[path] = member
                return
            case tar.SYMLINK:
                os.symlink(member.target, name, dir_fd=dir_fd)
            case tar.FILE if not member.socket:
                _write_file(dir_fd, name, tar.contents(self._archive, member.size), member.size)
            case _:
                os.mknod(
                    name, _node_type(member) | 0o600, os.makedev(*member.device), dir_fd=dir_fd
                )
        _set_attributes(dir_fd, name, member)

    def _link(self, dir_fd: int, name: bytes, member: Member) -> None:
        source = _components(member.target)
        kind = self._made.get(source)
        if kind is None or kind == tar.DIRECTORY or not source:
            raise LayerError(f"{member.path!r} is a link to {member.target!r}, which is no file")
        source_fd = open_beneath(self._fd, source[:-1])
        try:
            os.link(
                source[-1], name, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False
            )
        finally:
            os.close(source_fd)

    def _finish_directory(self, path: tuple[bytes, ...], member: Member) -> None:
        parent_fd = open_beneath(self._fd, path[:-1])
        try:
            _set_attributes(parent_fd, path[-1] if path else b".", member)
        finally:
            os.close(parent_fd)


def _components(path: bytes) -> tuple[bytes, ...]:
    """Return the components of a path in an archive; the root has none."""
    if path.startswith(b"/"):
        raise LayerError(f"{path!r} is an absolute path")
    found = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
    if b".." in found or any(len(name) > 255 for name in found):
        raise LayerError(f"{path!r} is not a path in a layer")
    return found


def _as_below(below: Sequence[int], path: tuple[bytes, ...]) -> Member:
    """Return what the first layer that has a directory says of it."""
    for layer_fd in below:
        try:
            fd = open_beneath(layer_fd, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            at, xattrs = os.stat(b".", dir_fd=fd), read_xattrs(whiteout.inside(fd, b"."))
        finally:
            os.close(fd)
        mode = stat.S_IMODE(at.st_mode)
        owner = (at.st_uid, at.st_gid)
        return Member(
            b"/".join(path), tar.DIRECTORY, mode, *owner, mtime_ns=at.st_mtime_ns, xattrs=xattrs
        )
    return Member(b"/".join(path), tar.DIRECTORY, 0o755)


def _node_type(member: Member) -> int:
    """Return the type of a device, fifo or socket."""
    if member.kind == tar.CHARACTER and member.device == (0, 0):
        raise LayerError(f"{member.path!r} is a device that means a deletion")
    types = {
        tar.FILE: stat.S_IFSOCK,
        tar.CHARACTER: stat.S_IFCHR,
        tar.BLOCK_DEVICE: stat.S_IFBLK,
        tar.FIFO: stat.S_IFIFO,
    }
    return types[member.kind]


def _set_attributes(dir_fd: int, name: bytes, member: Member) -> None:
    """Give a file its owner, mode, extended attributes and time, in the order that keeps them."""
    os.chown(name, member.uid, member.gid, dir_fd=dir_fd, follow_symlinks=False)
    if member.kind != tar.SYMLINK:
        os.chmod(name, member.mode, dir_fd=dir_fd)
    path = whiteout.inside(dir_fd, name)
    for key, value in member.xattrs.items():
        if key in OWN and not OWN[key](value):
            raise LayerError(f"{member.path!r} has a malformed attribute {key}")
        if key in OWN or not whiteout.is_private(key):
            os.setxattr(path, key, value, follow_symlinks=False)
    times = (member.mtime_ns, member.mtime_ns)
    os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)


def _write_file(dir_fd: int, name: bytes, pieces: Iterator[bytes], size: int) -> None:
    """Write a regular file; long runs of zeros become holes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
    try:
        os.ftruncate(fd, size)
        offset = 0
        for piece in pieces:
            for start in range(0, len(piece), len(_ZEROS)):
                part = piece[start : start + len(_ZEROS)]
                if part != _ZEROS[: len(part)] or len(part) < 4096:
                    _write_all(fd, part, offset + start)
            offset += len(piece)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
