"""How a deletion and an opaque directory are written in a layer: as the kernel's overlayfs does.

Source: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories", v6.12.
"""

import errno
import os
import stat

OPAQUE = "trusted.overlay.opaque"
"""On a directory: "y" hides the layers below; "x" says that xattr whiteouts are in it."""

REDIRECT = "trusted.overlay.redirect"
"""On a directory that was moved: where the layers below have it (redirect.py)."""

WHITEOUT = "trusted.overlay.whiteout"
"""On an empty regular file in a directory marked "x": a whiteout without device node."""

SHOWING = (OPAQUE, REDIRECT, WHITEOUT)
"""What decides, beside names and types, what a layer lets be seen of those below."""

DEVICE = os.makedev(0, 0)
"""A whiteout is a character device with this number."""

PRIVATE = ("trusted.overlay.", "trusted.stackfs.")
"""Extended attributes that belong to the layers, not to the files: hidden from programs."""

NUMBER = "trusted.stackfs.ino"
"""On a file: its inode number in the stack, in decimal, where its place does not tell it."""

LAYER_NUMBER = "trusted.stackfs.number"
"""On a layer's directory: the layer's number, in decimal; its files may carry NUMBER."""

COVERS = "trusted.stackfs.covers"
"""On a sealed layer's directory: the number of the lowest of the layers that were merged into it,
which take no part in the stack any more."""

MOVED = "trusted.stackfs.moved"
"""On the directory of a layer made here: directories in it may have REDIRECT. It spares looking
for them."""

LAYER_ID = "trusted.stackfs.id"
"""On the directory of a sealed layer: 32 hexadecimal digits."""


def is_whiteout(status: os.stat_result) -> bool:
    """Tell whether this is a device node that stands for a deletion."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == DEVICE


def is_private(name: str) -> bool:
    """Tell whether the extended attribute *name* belongs to the layers."""
    return name.startswith(PRIVATE)


def make(dir_fd: int, name: bytes) -> None:
    """Write that *name* is deleted. Atomic."""
    os.mknod(name, stat.S_IFCHR, DEVICE, dir_fd=dir_fd)


def attribute(path: bytes, name: str) -> bytes | None:
    """Return an extended attribute of *path*, never following a last symbolic link, or None."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as e:
        if e.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def attribute_names(path: bytes, *, follow: bool = False) -> list[str]:
    """Return the names of the extended attributes of *path*, none where it cannot have any."""
    try:
        return os.listxattr(path, follow_symlinks=follow)
    except OSError as e:
        if e.errno == errno.EOPNOTSUPP:
            return []
        raise


def inside(dir_fd: int, name: bytes) -> bytes:
    """Return a path to *name* in *dir_fd* for the calls that take no directory descriptor."""
    return b"/proc/self/fd/%d/%b" % (dir_fd, name)


def opacity(dir_fd: int, name: bytes = b".") -> bytes:
    """Return the opaque mark of a directory: b"y", b"x", or b"" where it has none."""
    return attribute(inside(dir_fd, name), OPAQUE) or b""


def marks(dir_fd: int, name: bytes) -> tuple[bool, bytes | None]:
    """Return whether a directory is opaque, and its redirect."""
    path = inside(dir_fd, name)
    names = attribute_names(path)
    opaque = OPAQUE in names and attribute(path, OPAQUE) == b"y"
    return opaque, attribute(path, REDIRECT) if REDIRECT in names else None


def set_opaque(dir_fd: int, name: bytes) -> None:
    """Hide what the layers below have in this directory."""
    os.setxattr(inside(dir_fd, name), OPAQUE, b"y", follow_symlinks=False)


def set_redirect(dir_fd: int, name: bytes, value: bytes) -> None:
    """Write where the layers below have what is in this directory.

    Raises:
        OSError: EXDEV, the file system cannot hold a path of that length.
    """
    try:
        os.setxattr(inside(dir_fd, name), REDIRECT, value, follow_symlinks=False)
    except OSError as e:
        if e.errno in (errno.E2BIG, errno.ENOSPC, errno.ERANGE):
            raise OSError(errno.EXDEV, "the path is too long for a redirect") from e
        raise
