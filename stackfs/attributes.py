"""Changing what an inode looks like, and its extended attributes."""

import errno
import os
import stat
from typing import NamedTuple

from stackfs.copyup import copy_up
from stackfs.layers import copying, whiteout
from stackfs.nodes import Directory, Node
from stackfs.tree import Tree


class Change(NamedTuple):
    """New attributes of an inode; None leaves one as it is.

    Attributes:
        atime_ns: nanoseconds since the epoch, as *mtime_ns*.
        size: bytes.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


NOTHING = Change()


def change(tree: Tree, node: Node, wanted: Change) -> None:
    """Change attributes in the upper layer, in the order in which one does not undo another."""
    copy_up(tree, node, contents=wanted.size != 0)
    path, dir_fd, follow = tree.inodes.place(node)
    if wanted.size is not None:
        os.ftruncate(tree.inodes.contents.for_writing(node), wanted.size)
    if wanted.uid is not None or wanted.gid is not None:
        uid = -1 if wanted.uid is None else wanted.uid
        gid = -1 if wanted.gid is None else wanted.gid
        os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=follow)
        node.xattrs = node.xattrs and None  # capabilities go; where nothing is, nothing comes
    if wanted.mode is not None:
        if stat.S_ISLNK(node.attr.st_mode):
            raise OSError(errno.EOPNOTSUPP, "a symbolic link has no mode")
        os.chmod(path, stat.S_IMODE(wanted.mode), dir_fd=dir_fd)
        node.xattrs = node.xattrs and None  # an ACL has changed
    if wanted.atime_ns is not None or wanted.mtime_ns is not None:
        attr = tree.attributes(node)
        atime = attr.st_atime_ns if wanted.atime_ns is None else wanted.atime_ns
        mtime = attr.st_mtime_ns if wanted.mtime_ns is None else wanted.mtime_ns
        os.utime(path, ns=(atime, mtime), dir_fd=dir_fd, follow_symlinks=follow)
    node.stale = True


def is_moot(tree: Tree, node: Node, wanted: Change) -> bool:
    """Tell whether nobody can see the change: a file has this time already, or has gone.

    The kernel, which has the say over it, tells it after each rename(2), and after each unlink(2):
    a file of a read-only layer would be copied. It is remembered for who has the file open and
    writes on.
    """
    if wanted.mtime_ns is None or wanted != Change(mtime_ns=wanted.mtime_ns):
        return False
    if not node.linked:
        return True
    attr = tree.attributes(node)
    return stat.S_ISREG(attr.st_mode) and attr.st_mtime_ns == wanted.mtime_ns


def remember(tree: Tree, node: Node, wanted: Change) -> None:
    """Take a new time of change over without writing it."""
    if wanted.mtime_ns is not None:
        tree.attributes(node).st_mtime_ns = wanted.mtime_ns


def clear_set_id(tree: Tree, node: Node) -> None:
    """Take away what a file may not keep when somebody but root has changed its contents.

    Source: fs/attr.c, setattr_should_drop_suidgid(), v6.12.
    """
    mode = stat.S_IMODE(node.attr.st_mode) & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    if mode != stat.S_IMODE(node.attr.st_mode):
        change(tree, node, Change(mode=mode))
        tree.attributes(node)


def clear_set_group_id(tree: Tree, node: Node) -> None:
    """Take away what a file may not keep when somebody outside its group has set its ACL.

    Source: fs/posix_acl.c, posix_acl_update_mode(), v6.12.
    """
    mode = tree.attributes(node).st_mode
    if mode & stat.S_ISGID:
        change(tree, node, Change(mode=mode & ~stat.S_ISGID))


def set_xattr(tree: Tree, node: Node, name: str, value: bytes) -> None:
    """Set an extended attribute.

    Raises:
        PermissionError: its name is one of the layers' own.
    """
    _check_settable(name)
    copy_up(tree, node)
    path, follow = tree.inodes.path(node)
    os.setxattr(path, name, value, follow_symlinks=follow)
    _changed(node)


def remove_xattr(tree: Tree, node: Node, name: str) -> None:
    """Remove an extended attribute."""
    _check_settable(name)
    if name not in tree.xattrs(node):
        raise OSError(errno.ENODATA, "no such attribute")
    copy_up(tree, node)
    path, follow = tree.inodes.path(node)
    os.removexattr(path, name, follow_symlinks=follow)
    _changed(node)


def _check_settable(name: str) -> None:
    if whiteout.is_private(name):
        raise PermissionError(errno.EPERM, f"{name} belongs to the layers")


def _changed(node: Node) -> None:
    """An access ACL changes the mode, and the file system may store it as the mode alone."""
    node.xattrs = None
    node.stale = True


def sync(tree: Tree, node: Node, fd: int, *, data_only: bool) -> None:
    """Write a file out, and its name where that is new.

    With the file, one journal writes out all that happened before: the name, too, and those of
    the directories above. What of it fdatasync(2) leaves out, fsync(2) does not.
    """
    if data_only and not node.name_unsynced:
        os.fdatasync(fd)
    else:
        os.fsync(fd)
    if node.name_unsynced and node.parent is not None and node.fd < 0:
        if not copying.is_ordered(fd):
            sync_directory(tree, node.parent)
        node.name_unsynced = False


def sync_directory(tree: Tree, directory: Directory) -> None:
    """Write out the names of a directory, and its own name where that is new."""
    at: Directory | None = directory
    while at is not None and at.linked and at.layer.writable:
        dir_fd = tree.inodes.directory_fd(at, at.layer)
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if not at.name_unsynced:
            return
        at.name_unsynced = False
        at = at.parent
