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

import pyfuse3

from stackfs.layers import whiteout
from stackfs.layers.layer import DIRECTORY, Layer
from stackfs.layers.numbers import BARRIER, ROOT, next_number
from stackfs.layers.union import Entry

FOREVER: Final = 1_000_000
"""Seconds for which the kernel may keep what it was told: only requests change anything."""


class Node:
    """An inode.

    Attributes:
        attr: its attributes, as last read.
        stale: whether they must be read again before they are told.
        backing: (st_dev, st_ino) of the file that holds it; None where another one does now that
            was not looked at yet.
        layer: the layer that the file is in.
        parent: the directory that it was found in, None for the root.
        name: its name there.
        fd: O_PATH descriptor of the file once it has lost that name, else -1.
        linked: whether any name leads to it.
        xattrs: its extended attributes, without the layers' own; None where not read yet.
        handles: descriptors of the file that are open for programs.
        lookups: how many references the kernel holds.
        name_unsynced: whether its directory must be written out for the name to be durable.
    """

    __slots__ = (
        "attr",
        "backing",
        "fd",
        "handles",
        "layer",
        "linked",
        "lookups",
        "name",
        "name_unsynced",
        "parent",
        "stale",
        "xattrs",
    )

    def __init__(self, ino: int, layer: Layer, parent: "Directory | None", name: bytes) -> None:
        self.attr = pyfuse3.EntryAttributes()
        self.attr.st_ino = pyfuse3.InodeT(ino)
        self.attr.attr_timeout = self.attr.entry_timeout = FOREVER
        self.backing: tuple[int, int] | None = (0, 0)
        self.layer = layer
        self.parent = parent
        self.name = name
        self.fd = -1
        self.linked = True
        self.stale = False
        self.xattrs: dict[str, bytes] | None = None
        self.handles: list[int] = []
        self.lookups = 0
        self.name_unsynced = False

    def fill(self, status: os.stat_result) -> None:
        """Take the attributes of the backing file."""
        attr = self.attr
        attr.st_mode = pyfuse3.ModeT(status.st_mode)
        attr.st_nlink = status.st_nlink
        attr.st_uid = status.st_uid
        attr.st_gid = status.st_gid
        attr.st_rdev = status.st_rdev
        attr.st_size = status.st_size
        attr.st_blksize = status.st_blksize
        attr.st_blocks = status.st_blocks
        attr.st_atime_ns = status.st_atime_ns
        attr.st_mtime_ns = status.st_mtime_ns
        attr.st_ctime_ns = status.st_ctime_ns
        self.backing = (status.st_dev, status.st_ino)
        self.stale = False


class Directory(Node):
    """An inode that is a directory.

    Attributes:
        layers: those whose directories merge into it, top first; the first holds its attributes.
        entries: what is visible in it, None where it has not been listed.
        fds: its O_PATH descriptors by layer, opened when they are needed.
    """

    __slots__ = ("entries", "fds", "layers")

    def __init__(
        self, ino: int, layers: list[Layer], parent: "Directory | None", name: bytes
    ) -> None:
        super().__init__(ino, layers[0], parent, name)
        self.layers = layers
        self.entries: dict[bytes, Entry[Layer]] | None = None
        self.fds: dict[Layer, int] = {}


MAX_IDLE: Final = 200_000
"""Where the kernel refers to more inodes than this, it is asked to give up those not in use.
An inode takes about 800 bytes here, a directory 1200."""


class Inodes:
    """The table of inodes, and the directory descriptors that they hold.

    Attributes:
        limit: how many inodes there may be before *crowded* is called, once.
    """

    def __init__(self, root: Directory, max_directory_fds: int) -> None:
        self.root = root
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

    def claim(self, ino: int, backing: tuple[int, int]) -> tuple[int, Node | None]:
        """Return the number for a file that says it is *ino*, and its inode if there is one.

        Two different files can claim one number, where a hard link was copied up by halves or
        an archive is hostile; the second one gets another.
        """
        while (node := self._nodes.get(ino)) is not None or ino in (BARRIER, ROOT):
            if node is not None and self._backing(node) == backing:
                return ino, node
            ino = next_number(ino)
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
            at = at.parent
        for at in reversed(missing):
            fd = at.fds[layer] = os.open(at.name, DIRECTORY, dir_fd=fd)
            self._open[at, layer] = None
        return fd

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
            node.fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)

    def pinned(self) -> list[Node]:
        """Return the inodes that are reached by a descriptor of their own."""
        return [node for node in self._nodes.values() if node.fd >= 0]

    def unpin(self, node: Node) -> None:
        """Give that descriptor up: the inode goes, or has a name again."""
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """Take back references of the kernel."""
        for ino, count in counts:
            node = self._nodes.get(ino)
            if node is not None:
                node.lookups -= count
                self.release(node)

    def release(self, node: Node) -> None:
        """Drop *node* if nobody refers to it any more.

        A directory with a name stays, because the inodes below it lead through it; what was
        read of it goes.
        """
        if node.lookups > 0 or node.handles or node is self.root:
            return
        if isinstance(node, Directory):
            node.entries = None
            self.close_directory(node)
            if node.linked:
                return
        self.unpin(node)
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
            children[parent] -= 1
            if parent is not None and not children[parent] and self._is_idle(parent):
                idle.append(parent)
        self.limit = max(MAX_IDLE, 2 * len(self._nodes))

    def _is_idle(self, directory: Directory) -> bool:
        used = directory.lookups > 0 or directory.handles or directory.name_unsynced
        return directory is not self.root and not used

    def close_directory(self, directory: Directory) -> None:
        """Close the descriptors of a directory; they are opened again if they are needed."""
        for layer, fd in directory.fds.items():
            self._open.pop((directory, layer), None)
            os.close(fd)
        directory.fds.clear()

    def drop_below(self, directory: Directory, layer: Layer) -> None:
        """Let a directory be in *layer* alone."""
        directory.layers = [layer]
        for other in [at for at in directory.fds if at is not layer]:
            self._open.pop((directory, other), None)
            os.close(directory.fds.pop(other))

    def replace(self, old: Collection[Layer], new: Layer) -> None:
        """Let a layer take the place of those that were merged into it."""
        for node in self._nodes.values():
            if isinstance(node, Directory):
                self._replace_in(node, old, new)
            if node.layer in old:
                node.layer = new
                if node.fd < 0:
                    node.backing = None

    def _replace_in(self, directory: Directory, old: Collection[Layer], new: Layer) -> None:
        merged = [layer for layer in directory.layers if layer in old]
        if not merged:
            return
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
        """Close every descriptor of the table."""
        for node in self._nodes.values():
            self.unpin(node)
            for fd in node.handles:
                os.close(fd)
            if isinstance(node, Directory) and node is not self.root:
                self.close_directory(node)


def _ignore() -> None:
    """Nobody bounds the table."""
