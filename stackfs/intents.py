"""Notes of what is about to be done and cannot be done twice: takeover.py reads them."""

from stackfs.journal import Intent
from stackfs.nodes import Directory, Node
from stackfs.tree import Tree


def note_new(
    tree: Tree, opcode: int, pid: int, parent: Directory, name: bytes, node: Node | None = None
) -> None:
    """Note that a name is about to be made; where it is there already, nothing will be.

    Args:
        tree: the tree, with its journal.
        opcode: of the request.
        pid: thread that made the request.
        parent: the directory in which the name is made.
        name: the name.
        node: the inode that gets the name, if it exists.
    """
    if name not in tree.entries(parent):
        ino = 0 if node is None else node.attr.st_ino
        tree.inodes.journal.intend(Intent(opcode, pid, ino, parent.attr.st_ino, name))


def note_loss(
    tree: Tree,
    opcode: int,
    pid: int,
    parent: Directory,
    name: bytes,
    to: tuple[Directory, bytes] | None = None,
) -> None:
    """Note that a name is about to be removed, or moved *to* another."""
    node = tree.child(parent, name)
    if node is not None:
        new_parent, new_name = to or (parent, b"")
        ino, new = node.attr.st_ino, new_parent.attr.st_ino
        intent = Intent(opcode, pid, ino, parent.attr.st_ino, name, new, new_name)
        tree.inodes.journal.intend(intent)


def note_xattr(tree: Tree, opcode: int, pid: int, node: Node, name: bytes) -> None:
    """Note that an extended attribute is about to be set or removed."""
    ino = node.attr.st_ino
    tree.inodes.journal.intend(Intent(opcode, pid, ino, ino, name))
