"""Copying one file from layer to layer: contents with their holes, and every attribute."""

import contextlib
import errno
import fcntl
import os
import stat

from stackfs import abi
from stackfs.layers import whiteout

_CHUNK = 1 << 24


def copy_contents(source: int, target: int, size: int) -> None:
    """Fill the empty file *target* with the first *size* bytes of *source*; holes stay holes.

    Shares the blocks where the file system can (ioctl_ficlone(2)).
    """
    try:
        fcntl.ioctl(target, abi.FICLONE, source)
    except OSError:
        os.ftruncate(target, size)
        _copy_data(source, target, size)


def fill(source: int, dir_fd: int, name: bytes, size: int) -> None:
    """Fill the empty file *name* from *source*, which is closed afterwards."""
    try:
        target = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            copy_contents(source, target, size)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_data(source: int, target: int, size: int) -> None:
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        offset = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, min(offset, size))


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        count = min(end - start, _CHUNK)
        try:
            copied = os.copy_file_range(source, target, count, start, start)
        except OSError as e:
            if e.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            copied = os.pwrite(target, os.pread(source, min(count, 1 << 20), start), start)
        if copied == 0:
            raise OSError(errno.EIO, "the file ends before its size")
        start += copied


def read_xattrs(path: bytes, *, follow: bool = False) -> dict[str, bytes]:
    """Return the extended attributes of a file without those that belong to the layers."""
    return {
        name: os.getxattr(path, name, follow_symlinks=follow)
        for name in whiteout.attribute_names(path, follow=follow)
        if not whiteout.is_private(name)
    }


def make_like(dir_fd: int, name: bytes, status: os.stat_result, target: bytes = b"") -> None:
    """Make an empty, private file of the type that *status* tells.

    Args:
        dir_fd: the directory to make it in.
        name: its name there.
        status: of the file that it will be a copy of.
        target: what a symbolic link leads to.
    """
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    elif kind == stat.S_IFLNK:
        os.symlink(target, name, dir_fd=dir_fd)
    else:
        os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=dir_fd)


def copy_attributes(
    dir_fd: int, name: bytes, status: os.stat_result, xattrs: dict[str, bytes]
) -> None:
    """Give a file an owner, mode, extended attributes and times, in the order that keeps them.

    chown(2) clears set-id bits and file capabilities, and an access ACL refines the mode.
    """
    os.chown(name, status.st_uid, status.st_gid, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=dir_fd)
    path = whiteout.inside(dir_fd, name)
    for key, value in xattrs.items():
        os.setxattr(path, key, value, follow_symlinks=False)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)


def set_number(dir_fd: int, name: bytes, number: int) -> None:
    """Write a file's inode number in the stack, where the file system can hold it."""
    with contextlib.suppress(OSError):
        path = whiteout.inside(dir_fd, name)
        os.setxattr(path, whiteout.NUMBER, b"%d" % number, follow_symlinks=False)


def sync(dir_fd: int, name: bytes) -> None:
    """Write a regular file out, so that it never hides a good one with half of its contents."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
