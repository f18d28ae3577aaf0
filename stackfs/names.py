"""Making and removing names, always in the upper layer."""

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from stackfs import abi
from stackfs.copyup import copy_up
from stackfs.layers import whiteout
from stackfs.layers.layer import DIRECTORY
from stackfs.layers.union import Entry
from stackfs.nodes import Directory, Node
from stackfs.tree import NAME_MAX, Tree

_DEFAULT_ACL = "system.posix_acl_default"


class Owner(NamedTuple):
    """Who makes a file, with which umask: it counts where the directory has no default ACL."""

    uid: int
    gid: int
    umask: int = 0


def create(tree: Tree, parent: Directory, name: bytes, mode: int, owner: Owner) -> tuple[Node, int]:
    """Make and open a regular file; return its inode and a descriptor for reading and writing."""
    opened = -1

    def make(dir_fd: int, at: bytes, mode: int) -> None:
        nonlocal opened
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        opened = os.open(at, flags, mode & 0o7777, dir_fd=dir_fd)

    try:
        return _make(tree, parent, name, mode, owner, make), opened
    except BaseException:
        if opened >= 0:
            os.close(opened)
        raise


def mkdir(tree: Tree, parent: Directory, name: bytes, mode: int, owner: Owner) -> Node:
    """Make a directory."""

    def make(dir_fd: int, at: bytes, mode: int) -> None:
        os.mkdir(at, mode & 0o7777, dir_fd=dir_fd)

    return _make(tree, parent, name, mode, owner, make)


def mknod(tree: Tree, parent: Directory, name: bytes, mode: int, rdev: int, owner: Owner) -> Node:
    """Make a fifo, socket or device.

    Raises:
        PermissionError: the device is one that would be a whiteout.
    """
    if stat.S_ISCHR(mode) and rdev == whiteout.DEVICE:
        raise PermissionError(errno.EPERM, "a character device 0:0 would be a whiteout")

    def make(dir_fd: int, at: bytes, mode: int) -> None:
        os.mknod(at, mode, rdev, dir_fd=dir_fd)

    return _make(tree, parent, name, mode, owner, make)


def symlink(tree: Tree, parent: Directory, name: bytes, target: bytes, owner: Owner) -> Node:
    """Make a symbolic link."""

    def make(dir_fd: int, at: bytes, mode: int) -> None:
        os.symlink(target, at, dir_fd=dir_fd)

    return _make(tree, parent, name, 0, owner, make)


def link(tree: Tree, node: Node, parent: Directory, name: bytes) -> None:
    """Give a file another name."""
    copy_up(tree, node)

    def make(dir_fd: int, at: bytes) -> None:
        source, source_fd, follow = tree.inodes.place(node)
        os.link(source, at, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=follow)

    _put(tree, parent, name, make)
    tree.entries(parent)[name] = Entry((tree.upper,), directory=False, ino=node.attr.st_ino)
    parent.stale = node.stale = node.name_unsynced = True
    # Programs make a file visible by linking it to its final name, and unlink the first one.
    tree.inodes.move(node, parent, name)


def _make(
    tree: Tree,
    parent: Directory,
    name: bytes,
    mode: int,
    owner: Owner,
    make: Callable[[int, bytes, int], None],
) -> Node:
    """Make a file that is not there yet; *make* gets its directory, name and mode."""
    if _DEFAULT_ACL not in tree.xattrs(parent):
        mode &= ~owner.umask

    def make_owned(dir_fd: int, at: bytes) -> None:
        make(dir_fd, at, mode)
        if owner.uid or owner.gid:
            gid = -1 if parent.attr.st_mode & stat.S_ISGID else owner.gid
            os.chown(at, owner.uid, gid, dir_fd=dir_fd, follow_symlinks=False)
            if mode & (stat.S_ISUID | stat.S_ISGID):
                os.chmod(at, mode & 0o7777, dir_fd=dir_fd)

    _put(tree, parent, name, make_owned)
    parent_fd = tree.inodes.directory_fd(parent, tree.upper)
    node = tree.made(parent, name, os.stat(name, dir_fd=parent_fd, follow_symlinks=False))
    if _DEFAULT_ACL not in tree.xattrs(parent):
        node.xattrs = {}
    return node


def _put(tree: Tree, parent: Directory, name: bytes, make: Callable[[int, bytes], None]) -> None:
    """Make something under a name that does not show: over its whiteout, if there is one."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "name too long")
    if name in tree.entries(parent):
        raise FileExistsError(errno.EEXIST, "the name exists")
    copy_up(tree, parent)
    parent_fd = tree.inodes.directory_fd(parent, tree.upper)
    try:
        make(parent_fd, name)
    except FileExistsError:
        _put_over_whiteout(tree, parent, name, make)


def _put_over_whiteout(
    tree: Tree, parent: Directory, name: bytes, make: Callable[[int, bytes], None]
) -> None:
    """Make something in the work directory and exchange it for a whiteout.

    It is made in a directory that passes on the same group and ACL as the parent does.
    """
    parent_fd = tree.inodes.directory_fd(parent, tree.upper)
    with tree.work.temporary() as stage:
        os.mkdir(stage, 0o700, dir_fd=tree.work.fd)
        if parent.attr.st_mode & stat.S_ISGID:
            os.chown(stage, -1, tree.status(parent).st_gid, dir_fd=tree.work.fd)
            os.chmod(stage, 0o2700, dir_fd=tree.work.fd)
        acl = tree.xattrs(parent).get(_DEFAULT_ACL)
        if acl is not None:
            os.setxattr(whiteout.inside(tree.work.fd, stage), _DEFAULT_ACL, acl)
        stage_fd = os.open(stage, DIRECTORY, dir_fd=tree.work.fd)
        try:
            make(stage_fd, name)
            status = os.stat(name, dir_fd=stage_fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                whiteout.set_opaque(stage_fd, name)
            abi.renameat2(stage_fd, name, parent_fd, name, abi.RENAME_EXCHANGE)
        finally:
            os.close(stage_fd)


def unlink(tree: Tree, parent: Directory, name: bytes) -> None:
    """Remove a name of a file."""
    node = tree.existing(parent, name)
    if isinstance(node, Directory):
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    prepare_loss(tree, node, parent, name)
    copy_up(tree, parent)
    parent_fd = tree.inodes.directory_fd(parent, tree.upper)
    below = tree.shows_below(parent, name)
    if node.layer is not tree.upper:
        whiteout.make(parent_fd, name)
    elif below:
        _cover(tree, parent_fd, name)
    else:
        os.unlink(name, dir_fd=parent_fd)
    _gone(tree, node, parent, name)


def rmdir(tree: Tree, parent: Directory, name: bytes) -> None:
    """Remove an empty directory."""
    node = tree.existing(parent, name)
    if not isinstance(node, Directory):
        raise NotADirectoryError(errno.ENOTDIR, "is no directory")
    if tree.entries(node):
        raise OSError(errno.ENOTEMPTY, "the directory is not empty")
    prepare_loss(tree, node, parent, name)
    copy_up(tree, parent)
    parent_fd = tree.inodes.directory_fd(parent, tree.upper)
    below = tree.shows_below(parent, name)
    if node.layer is not tree.upper:
        whiteout.make(parent_fd, name)
    elif below:
        _cover(tree, parent_fd, name)
    else:
        _remove_directory(tree, parent_fd, name)
    _gone(tree, node, parent, name)


def _remove_directory(tree: Tree, parent_fd: int, name: bytes) -> None:
    """Remove a directory of the upper layer that has nothing but whiteouts in it."""
    try:
        os.rmdir(name, dir_fd=parent_fd)
    except OSError as e:
        if e.errno != errno.ENOTEMPTY:
            raise
        with tree.work.temporary() as garbage:
            os.rename(name, garbage, src_dir_fd=parent_fd, dst_dir_fd=tree.work.fd)


def _cover(tree: Tree, parent_fd: int, name: bytes) -> None:
    """Put a whiteout in the place of a file or directory, which is removed. Atomic."""
    with tree.work.temporary() as temporary:
        whiteout.make(tree.work.fd, temporary)
        abi.renameat2(tree.work.fd, temporary, parent_fd, name, abi.RENAME_EXCHANGE)


def prepare_loss(tree: Tree, node: Node, parent: Directory, name: bytes) -> None:
    """Do what must be done before *node* loses this name.

    A file with several links is copied up with all of them, so that their count stays right;
    and a descriptor of the file is kept where the name was our way to it.
    """
    if not isinstance(node, Directory) and node.attr.st_nlink > 1:
        copy_up(tree, node)
    if node.parent is parent and node.name == name:
        tree.inodes.pin(node)


def _gone(tree: Tree, node: Node, parent: Directory, name: bytes) -> None:
    """Note that a name has been removed."""
    if tree.entries(parent).pop(name).directory and parent.subdirectories is not None:
        parent.subdirectories -= 1
    parent.stale = True
    lost(tree, node)


def lost(tree: Tree, node: Node) -> None:
    """Note that *node* has lost a name, perhaps its last."""
    node.stale = True
    if isinstance(node, Directory):
        node.linked = False
        node.entries = {}
        tree.inodes.close_directory(node)
    elif node.layer is not tree.upper or tree.status(node).st_nlink == 0:
        node.linked = False
        if node.layer is tree.upper:
            node.layer = tree.limbo
    if node.slot and node.fd >= 0:
        tree.inodes.note_pin(node)
    tree.inodes.release(node)


def hollow(tree: Tree, directory: Directory) -> None:
    """Let an empty directory be one without whiteouts in the upper layer, so it can be replaced."""
    parent = directory.parent
    if directory.layer is not tree.upper or parent is None:
        return
    parent_fd = tree.inodes.directory_fd(parent, tree.upper)
    with tree.work.temporary() as empty:
        os.mkdir(empty, 0o700, dir_fd=tree.work.fd)
        whiteout.set_opaque(tree.work.fd, empty)
        abi.renameat2(tree.work.fd, empty, parent_fd, directory.name, abi.RENAME_EXCHANGE)
