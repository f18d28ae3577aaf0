"""A read-only image as a lower layer: squashfs or erofs, mounted where nothing but its fd leads.

The mount is attached nowhere and goes with the last descriptor that leads into it, whatever
becomes of the process; so does the loop device below it, which the kernel takes back with its
last user. erofs is mounted from the file itself where the kernel can (Linux commit fb176750266a
("erofs: add file-backed mount support") (in v6.12)): whether it can is found out by trying.
"""

import errno
import os
import stat

from stackfs import abi

_MAGICS = ((0, b"hsqs", "squashfs"), (1024, b"\xe2\xe1\xf5\xe0", "erofs"))
"""Offset, magic number and file system type.

Source: fs/squashfs/squashfs_fs.h, SQUASHFS_MAGIC; fs/erofs/erofs_fs.h, EROFS_SUPER_OFFSET, v6.12.
"""


def is_image(path: str | os.PathLike[str]) -> bool:
    """Tell whether *path* leads to a file, which must be an image then."""
    return stat.S_ISREG(os.stat(path).st_mode)


def mount_image(path: str | os.PathLike[str]) -> int:
    """Return an O_PATH descriptor of the root directory of an image; the caller owns it.

    Raises:
        OSError: it is no image, or cannot be mounted.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kind = _kind(fd, os.fspath(path))
        if kind == "erofs":
            try:
                return _mount(kind, f"/proc/self/fd/{fd}")
            except OSError as e:
                if e.errno != errno.ENOTBLK:  # get_tree_bdev(): this kernel wants a device
                    raise
        loop_fd, device = _attach(fd)
        try:
            return _mount(kind, device)
        finally:
            os.close(loop_fd)
    except OSError as e:
        e.filename = e.filename or os.fspath(path)
        raise
    finally:
        os.close(fd)


def _kind(fd: int, path: str) -> str:
    for offset, magic, kind in _MAGICS:
        if os.pread(fd, len(magic), offset) == magic:
            return kind
    raise OSError(errno.EINVAL, "neither a directory nor a squashfs or erofs image", path)


def _mount(kind: str, source: str) -> int:
    context = abi.fsopen(kind.encode(), abi.FSOPEN_CLOEXEC)
    try:
        abi.fsconfig(context, abi.FSCONFIG_SET_STRING, b"source", source.encode())
        abi.fsconfig(context, abi.FSCONFIG_SET_FLAG, b"ro")
        abi.fsconfig(context, abi.FSCONFIG_CMD_CREATE)
        return abi.fsmount(context, abi.FSMOUNT_CLOEXEC, abi.MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)


def _attach(fd: int) -> tuple[int, str]:
    """Return a descriptor of a loop device over a file, and its path.

    The device is free again when its last user has closed it: until it is mounted, that is the
    descriptor.
    """
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            device = f"/dev/loop{abi.loop_ctl_get_free(control)}"
            loop_fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                abi.loop_configure(loop_fd, fd, abi.LO_FLAGS_READ_ONLY | abi.LO_FLAGS_AUTOCLEAR)
            except OSError as e:
                os.close(loop_fd)
                if e.errno != errno.EBUSY:  # somebody else was quicker
                    raise
            else:
                return loop_fd, device
    finally:
        os.close(control)
