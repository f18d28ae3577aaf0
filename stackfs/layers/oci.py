"""A layer directory as an OCI layer tar; unpack.py is the way back.

On disk a deletion is a device node and an opaque directory an extended attribute; in the tar they
are empty files named `.wh.NAME` and `.wh..wh..opq`. Extended attributes and ACLs go as
`SCHILY.xattr.NAME` records, an inode's number in the stack among them, whether the layer holds it
or its place tells it: in the unpacked layer files have other inode numbers of their own.

That a directory was moved without its files, an OCI layer cannot say; on request the redirect goes
along as it is on disk.

Source: OCI image specification v1.1, layer.md, "Whiteouts".
"""

import fcntl
import os
import re
import stat
from collections.abc import Callable
from typing import BinaryIO, Final

from stackfs.layers import redirect, tar, whiteout
from stackfs.layers.numbers import inode_number
from stackfs.layers.tar import Member, TarError
from stackfs.layers.walk import Found, walk

PREFIX: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
OWN: Final[dict[str, Callable[[bytes], object]]] = {
    whiteout.NUMBER: re.compile(rb"[0-9]{1,19}").fullmatch,
    whiteout.LAYER_NUMBER: re.compile(rb"[0-9]{1,5}").fullmatch,
    whiteout.LAYER_ID: re.compile(rb"[0-9a-f]{32}").fullmatch,
    whiteout.REDIRECT: redirect.is_valid,
}
"""The layers' own extended attributes that go along; with each, what tells a well-formed one."""


class LayerError(TarError):
    """The layer holds what an OCI layer cannot say, or the archive what a layer must not have."""


def pack(directory: str, output: BinaryIO, *, redirects: bool = False) -> None:
    """Write a layer directory to *output* as an OCI layer tar, in the same order every time.

    Args:
        directory: the layer.
        output: a stream.
        redirects: take redirects along, which `unpack` alone understands.

    Raises:
        LayerError: a name begins with `.wh.`, a directory was moved without its files and not
            *redirects*, or the layer is just being merged into another.
        OSError: something cannot be read, or *output* not be written.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _Packer(fd, output, redirects).run()
    except BlockingIOError as e:
        raise LayerError(f"{directory} is being merged into another layer") from e
    finally:
        os.close(fd)


class _Packer:
    """What packing remembers: the layer's number, and the first path of each linked file."""

    def __init__(self, fd: int, output: BinaryIO, redirects: bool) -> None:
        self._redirects = redirects
        self._fd = fd
        self._output = output
        self._device = os.fstat(fd).st_dev
        number = whiteout.attribute(whiteout.inside(fd, b"."), whiteout.LAYER_NUMBER)
        self._number = None if number is None else int(number)
        self._linked: dict[tuple[int, int], bytes] = {}

    def run(self) -> None:
        for found in walk(self._fd):
            self._write(found)
        self._output.write(tar.end())
        self._output.flush()

    def _write(self, found: Found) -> None:
        if found.name.startswith(PREFIX):
            raise LayerError(f"{found.path!r} has a name that would mean a deletion")
        xattrs = {
            name: os.getxattr(found.proc_path, name, follow_symlinks=False)
            for name in os.listxattr(found.proc_path, follow_symlinks=False)
        }
        if whiteout.REDIRECT in xattrs and not self._redirects:
            former = os.fsdecode(xattrs[whiteout.REDIRECT])
            raise LayerError(
                f"{os.fsdecode(found.path)} was moved from {former} without the files in it, which "
                "an OCI layer cannot say; for stackfs unpack: --redirects"
            )
        status = found.status
        if whiteout.is_whiteout(status) or whiteout.WHITEOUT in xattrs:
            parent, _, name = found.path.rpartition(b"/")
            path = os.path.join(parent, PREFIX + name)
            self._output.write(tar.encode(Member(path, mode=0, mtime_ns=0)))
            return
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), found.path)
            if first != found.path:
                self._output.write(tar.encode(Member(found.path, tar.LINK, target=first)))
                return
        self._output.write(tar.encode(self._member(found, xattrs)))
        if stat.S_ISREG(status.st_mode):
            _write_contents(self._output, found)
        elif xattrs.get(whiteout.OPAQUE) == b"y":
            path = os.path.join(found.path, OPAQUE)
            self._output.write(tar.encode(Member(path, mode=0, mtime_ns=0)))

    def _member(self, found: Found, xattrs: dict[str, bytes]) -> Member:
        status = found.status
        is_link, is_file = stat.S_ISLNK(status.st_mode), stat.S_ISREG(status.st_mode)
        return Member(
            found.path,
            _KINDS[stat.S_IFMT(status.st_mode)],
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_size if is_file else 0,
            status.st_mtime_ns,
            os.readlink(found.name, dir_fd=found.dir_fd) if is_link else b"",
            (os.major(status.st_rdev), os.minor(status.st_rdev)),
            self._xattrs(found, xattrs),
            socket=stat.S_ISSOCK(status.st_mode),
        )

    def _xattrs(self, found: Found, xattrs: dict[str, bytes]) -> dict[str, bytes]:
        """Return what to write: no marks that have another form in the tar, and the number."""
        kept = {
            name: value
            for name, value in xattrs.items()
            if name in OWN or not whiteout.is_private(name)
        }
        if self._number is not None and found.path != b".":
            at = found.status
            device = None if at.st_dev == self._device else at.st_dev
            number = inode_number(self._number, device, at.st_ino)
            kept.setdefault(whiteout.NUMBER, b"%d" % number)
        return kept


_KINDS: Final = {
    stat.S_IFREG: tar.FILE,
    stat.S_IFSOCK: tar.FILE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFIFO: tar.FIFO,
}


def _write_contents(output: BinaryIO, found: Found) -> None:
    size = found.status.st_size
    with os.fdopen(found.open(), "rb", buffering=0) as file:
        left = size
        while left:
            piece = file.read(min(left, 1 << 20))
            if not piece:
                raise LayerError(f"{found.path!r} became shorter while it was read")
            output.write(piece)
            left -= len(piece)
    output.write(bytes(-size % tar.BLOCK))
