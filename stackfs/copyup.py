"""Copy-up: bringing a file of a read-only layer into the upper one, before it is changed.

The copy is made in the work directory, written out, and gets its name by one rename(2) or
link(2): whatever interrupts it, the file is visible either there or here, always whole. The
inode stays the same to the kernel and to programs: its number goes along as an extended
attribute, whoever has it open reads and writes the copy from now on, and all names of a file
with several links come along.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from stackfs.layers import copying
from stackfs.layers.layer import lift
from stackfs.layers.redirect import Path
from stackfs.layers.union import Entry
from stackfs.nodes import Directory, Node
from stackfs.tree import Tree


def copy_up(tree: Tree, node: Node, *, contents: bool = True) -> None:
    """Make *node* one that can be changed in place.

    Args:
        tree: its tree.
        node: any inode; nothing happens where it can be changed already.
        contents: False where the file is about to be truncated to nothing.

    Raises:
        OSError: as the calls that write the upper layer; the file is as it was.
    """
    if node.layer.writable:
        return
    tree.copied_up += 1
    if isinstance(node, Directory):
        _copy_up_directories(tree, node)
    elif node.linked and (names := _names(tree, node)):
        _copy_up_file(tree, node, names, contents)
    else:
        _copy_up_nameless(tree, node, contents)


def _copy_up_directories(tree: Tree, directory: Directory) -> None:
    """Copy a directory up, without what is in it, and those above that are not there yet."""
    chain = []
    at: Directory | None = directory
    while at is not None and not at.layer.writable:
        if not at.linked:
            raise FileNotFoundError(errno.ENOENT, "the directory has been removed")
        chain.append(at)
        at = at.parent
    for at in reversed(chain):
        _copy_up_directory(tree, at)


def _copy_up_directory(tree: Tree, node: Directory) -> None:
    parent = _parent(node)
    with tree.work.temporary() as name:
        _make_copy(tree, node, name, contents=False)
        _move_in(tree, name, parent, node.name)
    node.layers.insert(0, tree.upper)
    node.redirect = None  # that was of the layer below
    node.layer = tree.upper
    node.backing = None
    node.stale = node.name_unsynced = True
    _show_above(tree, parent, node.name)


def _copy_up_file(
    tree: Tree, node: Node, names: list[tuple[Directory, bytes]], contents: bool
) -> None:
    for parent, _ in names:
        copy_up(tree, parent)
    with tree.work.temporary() as temporary:
        _make_copy(tree, node, temporary, contents=contents)
        if len(names) == 1:
            _move_in(tree, temporary, *names[0])
        else:
            for parent, name in names:
                _link_in(tree, temporary, parent, name)
    for parent, name in names:
        _show_above(tree, parent, name)
    node.layer = tree.upper
    tree.inodes.move(node, *names[0])
    node.name_unsynced = True
    _look_anew(tree, node)


def _copy_up_nameless(tree: Tree, node: Node, contents: bool) -> None:
    """Copy a file up that programs hold though it has lost its last name."""
    with tree.work.temporary() as name:
        _make_copy(tree, node, name, contents=contents, lasting=False)
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=tree.work.fd)
    node.layer = tree.limbo
    tree.inodes.hold(node, fd)
    _look_anew(tree, node)


def _make_copy(
    tree: Tree, node: Node, name: bytes, *, contents: bool, lasting: bool = True
) -> None:
    """Make the copy of a file as *name* in the work directory, *lasting* as in copying.fill()."""
    work_fd = tree.work.fd
    status = tree.status(node)
    target = tree.readlink(node) if stat.S_ISLNK(status.st_mode) else b""
    copying.make_like(work_fd, name, status, target)
    prepared = contents and tree.work.take_prepared(node.attr.st_ino, name)
    if contents and stat.S_ISREG(status.st_mode) and status.st_size > 0 and not prepared:
        source = tree.inodes.contents.open(node, os.O_RDONLY)
        copying.fill(source, work_fd, name, status.st_size, lasting=lasting)
    copying.set_number(work_fd, name, node.attr.st_ino)
    copying.copy_attributes(work_fd, name, status, tree.xattrs(node))


def _names(tree: Tree, node: Node) -> list[tuple[Directory, bytes]]:
    """Return every visible name of a file."""
    status = tree.status(node)
    if status.st_nlink == 1 and node.fd < 0:
        return [(_parent(node), node.name)]
    above = tree.root.layers[: tree.root.layers.index(node.layer)]
    found = [_resolve(tree, lift(path, above)) for path in node.layer.links(status)]
    return [place for place in found if place is not None and tree.child(*place) is node]


def _resolve(tree: Tree, path: Path) -> tuple[Directory, bytes] | None:
    """Return the directory that a path leads to, and the last name, if it is visible."""
    at = tree.root
    for name in path[:-1]:
        child = tree.child(at, name)
        if not isinstance(child, Directory):
            return None
        at = child
    return at, path[-1]


def _move_in(tree: Tree, temporary: bytes, parent: Directory, name: bytes) -> None:
    """Give a copy its name. To the parent directory nothing has happened: its times stay."""
    parent_fd = tree.inodes.directory_fd(parent, tree.upper)
    with _times_kept(parent_fd):
        os.rename(temporary, name, src_dir_fd=tree.work.fd, dst_dir_fd=parent_fd)


def _link_in(tree: Tree, temporary: bytes, parent: Directory, name: bytes) -> None:
    """Give a copy one of its names."""
    parent_fd = tree.inodes.directory_fd(parent, tree.upper)
    with _times_kept(parent_fd):
        os.link(
            temporary, name, src_dir_fd=tree.work.fd, dst_dir_fd=parent_fd, follow_symlinks=False
        )


@contextlib.contextmanager
def _times_kept(dir_fd: int) -> Iterator[None]:
    status = os.stat(b".", dir_fd=dir_fd)
    yield
    os.utime(b".", ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=dir_fd)


def _show_above(tree: Tree, parent: Directory, name: bytes) -> None:
    """Let the parent's list of names say that the upper layer has this one now."""
    if parent.entries is not None:
        old = parent.entries[name]
        below = old.layers if old.directory else ()
        layers = (tree.upper, *below)
        parent.entries[name] = Entry(layers, directory=old.directory, ino=old.ino)


def _look_anew(tree: Tree, node: Node) -> None:
    """Read the copy's attributes, and its contents from now on."""
    tree.inodes.contents.close(node)
    node.stale = True
    tree.attributes(node)


def _parent(node: Node) -> Directory:
    if node.parent is None:
        raise RuntimeError("the root directory is in every layer")
    return node.parent
