"""Moving names.

A directory that is not wholly in the upper layer moves without the files in it: a redirect says
where the layers below have them (layers/redirect.py).
"""

import errno
import os
import stat

from stackfs import abi
from stackfs.copyup import copy_up
from stackfs.layers import whiteout
from stackfs.layers.union import Entry
from stackfs.names import hollow, lost, prepare_loss
from stackfs.nodes import Directory, Node
from stackfs.tree import NAME_MAX, Tree


def rename(
    tree: Tree, parent: Directory, name: bytes, new_parent: Directory, new_name: bytes, flags: int
) -> None:
    """Rename as renameat2(2) does, with RENAME_NOREPLACE or RENAME_EXCHANGE or without flags."""
    if flags & ~(abi.RENAME_NOREPLACE | abi.RENAME_EXCHANGE):
        raise OSError(errno.EINVAL, "unsupported flags")
    if len(new_name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "name too long")
    node = tree.existing(parent, name)
    target = tree.child(new_parent, new_name)
    if flags & abi.RENAME_EXCHANGE:
        _exchange(tree, (parent, name, node), (new_parent, new_name, target))
        return
    if target is node:
        return
    if target is not None:
        _check_replaceable(tree, node, target, flags)
        prepare_loss(tree, target, new_parent, new_name)
    _ascend(tree, node)
    copy_up(tree, parent)
    copy_up(tree, new_parent)
    if isinstance(target, Directory):
        hollow(tree, target)
    _move(tree, (parent, name, node), new_parent, new_name)
    _note_move(tree, (parent, name, node), new_parent, new_name)
    if target is not None:
        lost(tree, target)


def _check_replaceable(tree: Tree, node: Node, target: Node, flags: int) -> None:
    if flags & abi.RENAME_NOREPLACE:
        raise FileExistsError(errno.EEXIST, "the new name exists")
    if isinstance(target, Directory):
        if not isinstance(node, Directory):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if tree.entries(target):
            raise OSError(errno.ENOTEMPTY, "the directory is not empty")
    elif isinstance(node, Directory):
        raise NotADirectoryError(errno.ENOTDIR, "is no directory")


def _move(
    tree: Tree, source: tuple[Directory, bytes, Node], new_parent: Directory, new_name: bytes
) -> None:
    """Move within the upper layer, leaving a whiteout where the layers below would show."""
    parent, name, node = source
    old_fd = tree.inodes.directory_fd(parent, tree.upper)
    new_fd = tree.inodes.directory_fd(new_parent, tree.upper)
    flags = abi.RENAME_WHITEOUT if tree.shows_below(parent, name) else 0
    if isinstance(node, Directory):
        if node.layers == [tree.upper] and tree.shows_below(new_parent, new_name):
            whiteout.set_opaque(old_fd, name)
        if _is_covered(new_fd, new_name):
            # A directory cannot replace a device node: the whiteout changes places with it, and
            # stays there if one is needed.
            abi.renameat2(old_fd, name, new_fd, new_name, abi.RENAME_EXCHANGE)
            if not flags:
                os.unlink(name, dir_fd=old_fd)
            return
    abi.renameat2(old_fd, name, new_fd, new_name, flags)


def _is_covered(dir_fd: int, name: bytes) -> bool:
    """Tell whether a whiteout is in the upper layer under a name that does not show."""
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(status.st_mode)


def _note_move(
    tree: Tree, source: tuple[Directory, bytes, Node], new_parent: Directory, new_name: bytes
) -> None:
    parent, name, node = source
    if isinstance(node, Directory):
        _note_directory(tree, (parent, name), (new_parent, new_name), exchange=False)
    if tree.entries(parent).pop(name).directory:
        parent.subdirectories = None
    _note_place(tree, node, new_parent, new_name)
    parent.stale = True


def _note_directory(
    tree: Tree, old: tuple[Directory, bytes], new: tuple[Directory, bytes], *, exchange: bool
) -> None:
    paths = ((*tree.inodes.path_in(at, tree.upper), name) for at, name in (old, new))
    tree.upper.note_rename(*paths, exchange=exchange)


def _note_place(tree: Tree, node: Node, parent: Directory, name: bytes) -> None:
    is_directory = isinstance(node, Directory)
    entry = Entry((tree.upper,), directory=is_directory, ino=node.attr.st_ino)
    entries = tree.entries(parent)
    replaced = entries.get(name)
    if is_directory or (replaced is not None and replaced.directory):
        parent.subdirectories = None
    entries[name] = entry
    tree.inodes.move(node, parent, name)
    node.stale = node.name_unsynced = parent.stale = True


def _exchange(
    tree: Tree,
    one: tuple[Directory, bytes, Node],
    two: tuple[Directory, bytes, Node | None],
) -> None:
    """Let two names change places."""
    parent, name, node = one
    new_parent, new_name, other = two
    if other is None:
        raise FileNotFoundError(errno.ENOENT, "nothing to exchange with")
    for at in (node, other):
        _ascend(tree, at)
    copy_up(tree, parent)
    copy_up(tree, new_parent)
    old_fd = tree.inodes.directory_fd(parent, tree.upper)
    new_fd = tree.inodes.directory_fd(new_parent, tree.upper)
    if isinstance(node, Directory) and node.layers == [tree.upper]:
        whiteout.set_opaque(old_fd, name)
    if isinstance(other, Directory) and other.layers == [tree.upper]:
        whiteout.set_opaque(new_fd, new_name)
    abi.renameat2(old_fd, name, new_fd, new_name, abi.RENAME_EXCHANGE)
    _note_directory(tree, (parent, name), (new_parent, new_name), exchange=True)
    _note_place(tree, node, new_parent, new_name)
    _note_place(tree, other, parent, name)


def _ascend(tree: Tree, node: Node) -> None:
    """Bring *node* into the upper layer; a directory without what is in it, which stays below."""
    copy_up(tree, node)
    if isinstance(node, Directory):
        tree.redirect(node)
