"""Descriptors of the files whose contents are read and written.

The kernel names a file by its inode number whoever has it open, so one descriptor for each is
enough; it is opened when it is needed, and closed when there are too many or the inode goes.
"""

import os
from collections.abc import Callable

from stackfs.nodes import Node


class Contents:
    """Those descriptors. Owns them."""

    def __init__(self, place: Callable[[Node], tuple[bytes, int | None, bool]], most: int) -> None:
        """Begin with none; *place* tells where a file is (Inodes.place())."""
        self._place = place
        self._most = most
        self._open: dict[Node, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, node: Node, flags: int) -> int:
        """Open the backing file; the caller owns the descriptor."""
        path, dir_fd, follow = self._place(node)
        nofollow = 0 if follow else os.O_NOFOLLOW
        return os.open(path, flags | nofollow | os.O_CLOEXEC, dir_fd=dir_fd)

    def for_reading(self, node: Node) -> int:
        """Return a descriptor to read from, valid until the next call."""
        return node.contents if node.contents >= 0 else self._keep(node, os.O_RDONLY)

    def for_writing(self, node: Node) -> int:
        """Return one to write to as well; the file is in a writable layer."""
        return node.contents if node.changeable else self._keep(node, os.O_RDWR)

    def hold(self, node: Node, fd: int) -> None:
        """Take over a descriptor that can be written to."""
        self.close(node)
        if len(self._open) >= self._most:
            self.close(next(iter(self._open)))
        self._open[node] = None
        node.contents, node.changeable = fd, True

    def _keep(self, node: Node, access: int) -> int:
        fd = self.open(node, access)
        self.hold(node, fd)
        node.changeable = access == os.O_RDWR
        return fd

    def close(self, node: Node) -> None:
        """Close the descriptor of a file, which is another one from now on, or has gone."""
        if node.contents >= 0:
            del self._open[node]
            os.close(node.contents)
            node.contents, node.changeable = -1, False

    def close_all(self) -> None:
        """Close them all."""
        for node in list(self._open):
            self.close(node)
