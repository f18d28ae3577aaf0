"""Going on where a daemon died: its inodes, and the requests that it had taken.

What it was changing is on disk or is not, never half, but for a file that was being made, which
may lack its owner: that is unmade. Whether the caller knows tells the kernel: what it sends again
was not answered.
"""

import os
import stat
from dataclasses import replace

from stackfs import names, requests
from stackfs.journal import Intent, Pin, State
from stackfs.layers.layer import Layer
from stackfs.nodes import Directory, Node
from stackfs.requests import Request
from stackfs.tree import Tree

_LOSSES = (requests.UNLINK, requests.RMDIR, requests.RENAME)


def restore(tree: Tree, state: State) -> None:
    """Take over inodes."""
    tree.inodes.recall(state.places, state.aliases)
    intent = state.intent
    if intent is not None and intent.opcode in (*_LOSSES, requests.LINK):
        _look_again(tree, intent.parent, intent.name)
        _look_again(tree, intent.new_parent, intent.new_name)
    for ino, pin in state.pins.items():
        _restore_pinned(tree, ino, pin, state)


def _look_again(tree: Tree, parent: int, name: bytes) -> None:
    """Note which inode a name leads to."""
    directory = tree.node(parent)
    if name and isinstance(directory, Directory):
        node = tree.child(directory, name)
        if node is not None:
            tree.inodes.move(node, directory, name)


def _restore_pinned(tree: Tree, ino: int, pin: Pin, state: State) -> None:
    if pin.linked and (found := tree.node(ino)) is not None and found.parent is not None:
        tree.inodes.move(found, found.parent, found.name)  # the name was not lost after all
        os.close(pin.fd)
        return
    status = os.fstat(pin.fd)
    layer = _layer(tree, pin.layer)
    linked = pin.linked
    if linked and _concerns(state, ino):
        linked = layer is tree.upper and status.st_nlink > 0 and not stat.S_ISDIR(status.st_mode)
    if pin.limbo or (not linked and layer is tree.upper):
        layer = tree.limbo
    node: Node
    if stat.S_ISDIR(status.st_mode):
        node = Directory(ino, [layer], None, b"")
        node.entries = {}
    else:
        node = Node(ino, layer, None, b"")
    tree.fill(node, status)
    node.stale, node.linked, node.fd = True, linked, pin.fd
    tree.inodes.add(node)
    tree.inodes.note_pin(node)


def _concerns(state: State, ino: int) -> bool:
    """Tell whether what was under way takes a name from an inode."""
    intent, place = state.intent, state.places.get(ino)
    if intent is None or intent.opcode not in _LOSSES:
        return False
    target = (intent.new_parent, intent.new_name)
    return ino == intent.ino or (place is not None and (place.parent, place.name) == target)


def _layer(tree: Tree, number: int) -> Layer:
    for layer in (tree.upper, *tree.root.layers):
        if layer.number == number:
            return layer
    return Layer(tree.upper.path, tree.upper.fd, number)  # merged into another one


def sort_out(
    tree: Tree, intent: Intent | None, resent: list[Request]
) -> tuple[list[bytes], list[bytes]]:
    """Tell replies, for what had been done, from requests that are still to be handled.

    Returns:
        Replies for the kernel, and requests in the order in which it sent them.
    """
    replies, left = [], []
    for request in resent:
        if request.resent and intent is not None and _is_of(request, intent):
            again = _still_to_do(tree, intent, request)
            if again is None:
                replies.append(requests.done(request.unique))
                continue
            request = replace(request, data=again)  # noqa: PLW2901
        left.append(request.data)
    return replies, left


def _is_of(request: Request, intent: Intent) -> bool:
    """Tell whether *intent* was noted for a request. A thread waits for one at a time."""
    opcode = requests.RENAME if request.opcode == requests.RENAME2 else request.opcode
    asked = (opcode, request.node, request.pid)
    return asked == (intent.opcode, intent.parent, intent.pid) and intent.name in request.body


def _still_to_do(tree: Tree, intent: Intent, request: Request) -> bytes | None:
    """Return what is left of a request, None where it has been done."""
    at = tree.node(intent.parent)
    if intent.opcode == requests.SETXATTR:
        return request.without_flags()
    if intent.opcode == requests.REMOVEXATTR and at is not None:
        return request.data if os.fsdecode(intent.name) in tree.xattrs(at) else None
    if isinstance(at, Directory):
        return _name_still_to_do(tree, intent, request, at)
    return request.data


def _name_still_to_do(
    tree: Tree, intent: Intent, request: Request, parent: Directory
) -> bytes | None:
    """Return what is left of a request that makes or removes a name."""
    node = tree.child(parent, intent.name)
    if intent.opcode in _LOSSES:
        return request.data if node is not None and node.attr.st_ino == intent.ino else None
    if node is not None and intent.opcode == requests.LINK:
        return request.as_lookup(intent.name)
    if node is not None:
        _unmake(tree, parent, intent.name, node)
    return request.data


def _unmake(tree: Tree, parent: Directory, name: bytes, node: Node) -> None:
    if isinstance(node, Directory):
        names.rmdir(tree, parent, name)
    else:
        names.unlink(tree, parent, name)
