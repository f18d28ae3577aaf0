"""What programs have open: files, and directories that are being read.

A file's handle is the descriptor of its backing file; a directory's is a number of a list. Both
are in the journal, so that the next daemon can go on with them.
"""

import logging
import os

from stackfs.copyup import switch_handles
from stackfs.journal import State
from stackfs.layers.numbers import BARRIER
from stackfs.nodes import Directory, Node
from stackfs.tree import Tree

log = logging.getLogger(__name__)


class Handles:
    """The open files and directories of one tree. Owns the files' descriptors.

    Attributes:
        files: the inode of each open file.
        by_root: the files that root opened: what it writes clears no set-id bits.
        directories: the directory of each handle, None for the barrier.
    """

    def __init__(self, tree: Tree) -> None:
        self.files: dict[int, Node] = {}
        self.by_root: set[int] = set()
        self.directories: dict[int, Directory | None] = {}
        self._tree = tree
        self._next_directory = 1
        self._journal = tree.inodes.journal
        self._journal.writers.append(self._write)

    def open(self, node: Node, fd: int, pid: int, uid: int) -> None:
        """Take over the descriptor *fd* of a file's backing, for thread *pid* of user *uid*."""
        node.handles.append(fd)
        self.files[fd] = node
        if uid == 0:
            self.by_root.add(fd)
        self._journal.opened(fd, node.attr.st_ino, pid)

    def close(self, fd: int) -> Node | None:
        """Forget an open file and close it; return its inode, None if that was done before."""
        node = self.files.pop(fd, None)
        if node is not None:
            node.handles.remove(fd)
            self.by_root.discard(fd)
            self._journal.closed(fd)
            os.close(fd)
        return node

    def open_directory(self, directory: Directory | None, pid: int) -> int:
        """Return a handle for reading a directory, None being the barrier."""
        handle = self._next_directory
        self._next_directory += 1
        self.directories[handle] = directory
        self._journal.opened_directory(handle, _number(directory), pid)
        return handle

    def close_directory(self, handle: int) -> None:
        """Forget an open directory; nothing if that was done before."""
        self.directories.pop(handle, None)
        self._journal.closed_directory(handle)

    def counts(self) -> tuple[int, int]:
        """Return how many files and directories programs have open."""
        return len(self.files), len(self.directories)

    def has(self, handle: int, *, directory: bool) -> bool:
        """Tell whether a handle is one of an open file, or directory."""
        return handle in (self.directories if directory else self.files)

    def drop(self, handle: int, *, directory: bool) -> None:
        """Close what no program was told of."""
        if directory:
            self.close_directory(handle)
        else:
            self.close(handle)

    def resume(self, state: State) -> None:
        """Go on with what programs had open when an earlier daemon died."""
        for fd, ino in state.files.items():
            node = self._tree.node(ino)
            if node is None:
                log.error("the open file %d, inode %d, is not to be found", fd, ino)
                continue
            node.handles.append(fd)
            self.files[fd] = node
        for node in set(self.files.values()):
            self._switch(node)
        for handle, ino in state.directories.items():
            node = self._tree.node(ino)
            if ino == BARRIER:
                self.directories[handle] = None
            elif isinstance(node, Directory):
                self.directories[handle] = node
            else:
                log.error("the open directory %d, inode %d, is not to be found", handle, ino)
        self._next_directory = max(state.directories, default=0) + 1

    def _switch(self, node: Node) -> None:
        """Have the descriptors of a file be of its copy, where it was copied up and they are not.

        Those of a file that is still in a read-only layer stay: if that was merged, they have the
        same contents.
        """
        if not node.layer.writable:
            return
        if {(at.st_dev, at.st_ino) for at in map(os.fstat, node.handles)} != {node.backing}:
            try:
                switch_handles(self._tree, node)
            except OSError as e:  # one file is less than the mount
                log.error("%r stays open as it was: %s", node.name, e)

    def _write(self) -> None:
        """Write all of it into the journal."""
        for fd, node in self.files.items():
            self._journal.opened(fd, node.attr.st_ino)
        for handle, directory in self.directories.items():
            self._journal.opened_directory(handle, _number(directory))


def _number(directory: Directory | None) -> int:
    return BARRIER if directory is None else directory.attr.st_ino
