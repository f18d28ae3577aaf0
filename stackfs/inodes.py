"""The inodes that the kernel knows of: numbers, attributes, lookup counts, where each file is.

A file is reached by its parent directory's descriptor in its layer and its name there, so that
no path is walked twice; a file without a name by an O_PATH descriptor that is kept for it. The
daemon alone changes the writable layer and the others never change, hence what was read once
stays true.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Final

from stackfs.contents import Contents
from stackfs.journal import Journal, Pin, Place
from stackfs.layers import whiteout
from stackfs.layers.layer import DIRECTORY, Layer
from stackfs.layers.numbers import BARRIER, ROOT, next_number
from stackfs.layers.redirect import Path
from stackfs.layers.walk import open_beneath
from stackfs.nodes import Directory, Node

MAX_IDLE: Final = 150_000
"""Where the kernel refers to more inodes than this, it is asked to give up those not in use.
An inode takes about 900 bytes here, a directory 1300."""

MAX_CONTENTS: Final = 4096
"""Of descriptors to read and write files by."""


class Inodes:
    """The table of inodes, and the directory descriptors that they hold.

    Attributes:
        limit: how many inodes there may be before *crowded* is called, once.
        journal: what a daemon that takes over will know.
        contents: what is open to be read and written.
        known: where inodes are that the kernel knows from an earlier daemon, by number.
        aliases: numbers given to files that claim another one's.
    """

    def __init__(self, root: Directory, max_directory_fds: int, journal: Journal) -> None:
        self.root = root
        self.journal = journal
        self.contents = Contents(self.place, min(max_directory_fds // 2, MAX_CONTENTS))
        self.known: dict[int, Place] = {}
        self._known_parents: set[int] = set()
        self.aliases: dict[tuple[int, int, int], int] = {}
        journal.writers.append(self._write)
        self._nodes: dict[int, Node] = {ROOT: root}
        self._open: dict[tuple[Directory, Layer], None] = {}
        self._max_open = max_directory_fds
        self.limit: float = MAX_IDLE
        self.crowded: Callable[[], None] = _ignore

    def __getitem__(self, ino: int) -> Node:
        return self._nodes[ino]

    def __contains__(self, ino: int) -> bool:
        return ino in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def open_directories(self) -> int:
        """The number of directory descriptors."""
        return len(self._open)

    def get(self, ino: int) -> Node | None:
        """Return an inode of the table by number."""
        return self._nodes.get(ino)

    def claim(
        self, ino: int, backing: tuple[int, int], place: tuple[Directory, bytes] | None = None
    ) -> tuple[int, Node | None]:
        """Return the number for a file that says it is *ino*, and its inode if there is one.

        Two different files can claim one number, where a hard link was copied up by halves or
        a layer is hostile; the second one gets another.

        Args:
            ino: what it says.
            backing: (st_dev, st_ino) of it.
            place: where a directory is: what is seen at two places are two directories.
        """
        claimed, ino = ino, self.aliases.get((ino, *backing), ino)
        while (node := self._nodes.get(ino)) is not None or ino in (BARRIER, ROOT):
            here = node is not None and place in (None, (node.parent, node.name))
            if node is not None and here and self._backing(node) == backing:
                return ino, node
            ino = next_number(ino)
        if ino != claimed:
            self.aliases[claimed, *backing] = ino
            self.journal.alias(claimed, backing, ino)
        return ino, None

    def _backing(self, node: Node) -> tuple[int, int] | None:
        if node.backing is None:
            path, dir_fd, follow = self.place(node)
            status = os.stat(path, dir_fd=dir_fd, follow_symlinks=follow)
            node.backing = (status.st_dev, status.st_ino)
        return node.backing

    def add(self, node: Node) -> None:
        """Put a new inode into the table."""
        self._nodes[node.attr.st_ino] = node
        if self.known and (known := self.known.pop(node.attr.st_ino, None)) is not None:
            node.slot = known.slot
            node.lookups = self.journal.words[known.slot]
        if len(self._nodes) > self.limit:
            self.limit = math.inf
            self.crowded()

    def directory_fd(self, directory: Directory, layer: Layer) -> int:
        """Return the O_PATH descriptor of *directory* in *layer*, which stays the directory's.

        It is valid until the next `trim`.
        """
        missing: list[Directory] = []
        at = directory
        while (fd := at.fds.get(layer)) is None:
            missing.append(at)
            if at.parent is None:
                raise RuntimeError(f"the root has no descriptor in {layer.path}")
            at = self.root if layer in at.moved else at.parent
        for at in reversed(missing):
            path = at.moved.get(layer)
            if path is None:
                fd = at.fds[layer] = os.open(at.name, DIRECTORY, dir_fd=fd)
            else:
                fd = at.fds[layer] = open_beneath(layer.fd, path)
            self._open[at, layer] = None
        return fd

    def path_in(self, directory: Directory, layer: Layer) -> Path:
        """Return where a directory is in a layer, from the root of that."""
        names: list[bytes] = []
        while directory.parent is not None:
            place = directory.moved.get(layer)
            if place is not None:
                return place + tuple(reversed(names))
            names.append(directory.name)
            directory = directory.parent
        return tuple(reversed(names))

    def place(self, node: Node) -> tuple[bytes, int | None, bool]:
        """Return where the file of *node* is: path, directory descriptor, follow_symlinks."""
        if node.fd >= 0:
            return b"/proc/self/fd/%d" % node.fd, None, True
        if node.parent is None:
            return b".", self.root.fds[node.layer], False
        return node.name, self.directory_fd(node.parent, node.layer), False

    def path(self, node: Node) -> tuple[bytes, bool]:
        """Return the same for the calls that take no directory descriptor."""
        path, dir_fd, follow = self.place(node)
        return (path if dir_fd is None else whiteout.inside(dir_fd, path)), follow

    def pin(self, node: Node) -> None:
        """Keep a descriptor of the file, because *node* is about to lose its name."""
        if node.fd < 0:
            path, dir_fd, _ = self.place(node)
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
            self.hold(node, fd)

    def pinned(self) -> list[Node]:
        """Return the inodes that are reached by a descriptor of their own."""
        return [node for node in self._nodes.values() if node.fd >= 0]

    def hold(self, node: Node, fd: int) -> None:
        """Let *fd*, which becomes the table's, be the way to the file."""
        old, node.fd = node.fd, fd
        if node.slot:
            self.note_pin(node)
        if old >= 0:
            os.close(old)

    def note_pin(self, node: Node) -> None:
        """Write into the journal what a file without its name is."""
        limbo = not node.linked and node.layer.writable
        pin = Pin(node.fd, node.layer.number, linked=node.linked, limbo=limbo)
        self.journal.pin(node.attr.st_ino, pin)

    def move(self, node: Node, parent: Directory, name: bytes) -> None:
        """Note that this name now leads to *node*, and give its descriptor up."""
        node.parent, node.name = parent, name
        fd, node.fd = node.fd, -1
        if node.slot:
            self._note(node)
        if fd >= 0:
            os.close(fd)

    def refer(self, node: Node) -> None:
        """Count a reference of the kernel. The journal says it before the kernel knows."""
        node.lookups += 1
        if node.slot:
            self.journal.words[node.slot] = node.lookups
        else:
            self._note(node)

    def _note(self, node: Node) -> None:
        """Write into the journal where a file is, after the directories that lead to it."""
        missing = [node]
        while (at := missing[-1].parent) is not None and not at.slot and at is not self.root:
            missing.append(at)
        for one in reversed(missing):
            if one.parent is not None:
                ino, parent = one.attr.st_ino, one.parent.attr.st_ino
                one.slot = self.journal.place(ino, parent, one.name, one.lookups)
                if one.fd >= 0:
                    self.note_pin(one)

    def _write(self) -> None:
        """Write everything that is true into the journal."""
        for ino, known in self.known.items():
            count = self.journal.count(known)
            slot = self.journal.place(ino, known.parent, known.name, count)
            self.known[ino] = Place(known.parent, known.name, slot)
        noted = [node for node in self._nodes.values() if node.slot]
        for node in noted:
            node.slot = 0
        for node in noted:
            if not node.slot:
                self._note(node)
        for (claimed, *backing), ino in self.aliases.items():
            self.journal.alias(claimed, (backing[0], backing[1]), ino)

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """Take back references of the kernel."""
        for ino, count in counts:
            node = self._nodes.get(ino)
            if node is not None:
                node.lookups -= count
                if node.slot:
                    self.journal.words[node.slot] = max(node.lookups, 0)
                self.release(node)
            elif ino in self.known:
                self._forget_known(ino, count)

    def _forget_known(self, ino: int, count: int) -> None:
        """Take back references to an inode that nobody has asked this daemon about."""
        words, slot = self.journal.words, self.known[ino].slot
        words[slot] = max(words[slot] - count, 0)
        if not words[slot] and ino not in self._known_parents:
            del self.known[ino]

    def recall(self, known: dict[int, Place], aliases: dict[tuple[int, int, int], int]) -> None:
        """Take over what an earlier daemon knew."""
        self.known, self.aliases = known, aliases
        self._known_parents = {place.parent for place in known.values()}

    def release(self, node: Node) -> None:
        """Drop *node* if nobody refers to it any more.

        A directory with a name stays, because the inodes below it lead through it; what was
        read of it goes.
        """
        if node.lookups > 0 or node is self.root:
            return
        if isinstance(node, Directory):
            node.entries = None
            self.close_directory(node)
            if node.linked:
                return
        self.contents.close(node)
        if node.fd >= 0:
            self.journal.gone(node.attr.st_ino)
            os.close(node.fd)
            node.fd = -1
        self._nodes.pop(node.attr.st_ino, None)

    def sweep(self) -> None:
        """Drop the directories that no inode is reached through, and set a new limit.

        One whose name is not durable stays, so that fsync(2) of a file in it writes it out.
        """
        children = Counter(node.parent for node in self._nodes.values())
        idle = [
            node
            for node in self._nodes.values()
            if isinstance(node, Directory) and not children[node] and self._is_idle(node)
        ]
        while idle:
            directory = idle.pop()
            self.close_directory(directory)
            del self._nodes[directory.attr.st_ino]
            parent = directory.parent
            if self.known and directory.slot and parent is not None:
                place = Place(parent.attr.st_ino, directory.name, directory.slot)
                self.known[directory.attr.st_ino] = place
            children[parent] -= 1
            if parent is not None and not children[parent] and self._is_idle(parent):
                idle.append(parent)
        self.limit = max(MAX_IDLE, 2 * len(self._nodes))

    def _is_idle(self, directory: Directory) -> bool:
        used = directory.lookups > 0 or directory.name_unsynced
        return directory is not self.root and not used

    def close_directory(self, directory: Directory) -> None:
        """Close the descriptors of a directory; they are opened again if they are needed."""
        for layer, fd in directory.fds.items():
            self._open.pop((directory, layer), None)
            os.close(fd)
        directory.fds.clear()

    def moved(self) -> list[Directory]:
        """Return the directories that some layer has elsewhere, one before those in it."""
        found = [node for node in self._nodes.values() if isinstance(node, Directory)]
        return sorted((node for node in found if node.moved), key=_depth)

    def replace(self, old: Collection[Layer], new: Layer) -> None:
        """Let a layer take the place of those that were merged into it."""
        for node in self._nodes.values():
            if isinstance(node, Directory):
                self._replace_in(node, old, new)
            if node.layer in old:
                node.layer = new
                self.contents.close(node)
                if node.fd < 0:
                    node.backing = None

    def _replace_in(self, directory: Directory, old: Collection[Layer], new: Layer) -> None:
        merged = [layer for layer in directory.layers if layer in old]
        if not merged:
            return
        for layer in merged:
            directory.moved.pop(layer, None)
        layers = [new if layer is merged[0] else layer for layer in directory.layers]
        directory.layers = [layer for layer in layers if layer not in old]
        if directory.linked:
            directory.entries = None
        for layer in merged:
            fd = directory.fds.pop(layer, -1)
            if fd >= 0 and directory is not self.root:  # the layer's own
                del self._open[directory, layer]
                os.close(fd)

    def trim(self) -> None:
        """Close the older half of the directory descriptors where there are too many.

        To be called between requests only: a descriptor in use must not become another file's.
        """
        if len(self._open) <= self._max_open:
            return
        for directory, layer in list(self._open)[: self._max_open // 2]:
            del self._open[directory, layer]
            os.close(directory.fds.pop(layer))

    def close(self) -> None:
        """Close every descriptor of the table, and the journal."""
        self.journal.close()
        self.contents.close_all()
        for node in self._nodes.values():
            if node.fd >= 0:
                os.close(node.fd)
            if isinstance(node, Directory) and node is not self.root:
                self.close_directory(node)


def _depth(node: Node) -> int:
    depth = 0
    while node.parent is not None:
        node, depth = node.parent, depth + 1
    return depth


def _ignore() -> None:
    """Nobody bounds the table."""
