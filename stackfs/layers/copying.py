"""Copying one file from layer to layer: contents with their holes, and every attribute."""

import contextlib
import errno
import fcntl
import os
import stat

from stackfs import abi
from stackfs.layers import whiteout

_CHUNK = 1 << 24
_WRITE_AND_WAIT = (
    abi.SYNC_FILE_RANGE_WAIT_BEFORE | abi.SYNC_FILE_RANGE_WRITE | abi.SYNC_FILE_RANGE_WAIT_AFTER
)


def copy_contents(source: int, target: int, size: int) -> bool:
    """Fill the empty file *target* with the first *size* bytes of *source*; holes stay holes.

    Shares the blocks where the file system can (ioctl_ficlone(2)), and tells whether it did.
    """
    try:
        fcntl.ioctl(target, abi.FICLONE, source)
    except OSError:
        os.ftruncate(target, size)
        _copy_data(source, target, size)
        return False
    return True


def fill(source: int, dir_fd: int, name: bytes, size: int, *, lasting: bool = False) -> None:
    """Fill the empty file *name* from *source*, which is closed afterwards.

    With *lasting*, a name that the file gets afterwards never outlives its contents in a power
    loss (`_write_out`). Shared blocks are on the disk, and the journal has them before the name.
    """
    try:
        target = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            if not copy_contents(source, target, size) and lasting:
                _write_out(target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _write_out(fd: int) -> None:
    """Write out the contents of a file so that they are on the disk before what is done next.

    Where one journal holds sizes, extents and names in the order in which they came, it is enough
    to wait for the data: when that is written, the size and the extents are in the journal, and a
    commit flushes the disk first. That takes a twentieth of the time of fsync(2), which commits.

    Source: fs/ext4/page-io.c, ext4_end_io_end(); fs/xfs/xfs_aops.c, xfs_end_ioend(), v6.12: both
    before the pages are no longer under write-back.
    """
    if is_ordered(fd):
        abi.sync_file_range(fd, 0, 0, _WRITE_AND_WAIT)
    else:
        os.fsync(fd)


_ordered: dict[int, bool] = {}


def is_ordered(fd: int) -> bool:
    """Tell whether the file system of a file keeps the order of all changes in one journal.

    xfs does, and ext4 with a journal of its own.

    Source: fs/jbd2/journal.c, jbd2_journal_init_inode(): the name in /proc/fs/jbd2 of a journal
    that is in the file system itself.
    """
    device = os.fstat(fd).st_dev
    if (known := _ordered.get(device)) is not None:
        return known
    kind = abi.fstatfs_type(fd)
    ordered = kind == abi.XFS_SUPER_MAGIC
    if kind == abi.EXT4_SUPER_MAGIC:
        with contextlib.suppress(OSError):
            disk = os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
            journals = os.listdir("/proc/fs/jbd2")
            ordered = any(at.startswith(f"{os.path.basename(disk)}-") for at in journals)
    _ordered[device] = ordered
    return ordered


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
