"""Copying a big file up while other requests go on."""

import os
import stat

import trio

from stackfs import loop
from stackfs.copyup import copy_up
from stackfs.inodes import Node
from stackfs.layers.copying import fill, sync
from stackfs.layers.work import remove
from stackfs.tree import Tree


class Copier:
    """Copies the files of one tree up; no file twice at a time."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._under_way: dict[int, trio.Event] = {}

    async def copy_up(self, node: Node, *, contents: bool = True) -> None:
        """Copy a file up, its contents in a thread.

        The file in the read-only layer cannot change meanwhile; all that follows the copying
        happens in one go.
        """
        if contents and not node.layer.writable and _has_contents(node):
            if (under_way := self._under_way.get(node.attr.st_ino)) is not None:
                loop.yield_reader()
                await under_way.wait()
            else:
                await self._copy_contents(node)
        copy_up(self._tree, node, contents=contents)

    async def _copy_contents(self, node: Node) -> None:
        tree, number = self._tree, node.attr.st_ino
        name = tree.work.name()
        done = self._under_way[number] = trio.Event()
        try:
            os.mknod(name, stat.S_IFREG | 0o600, dir_fd=tree.work.fd)
            source = tree.open_backing(node, os.O_RDONLY)
            size = os.fstat(source).st_size
            loop.yield_reader()
            await trio.to_thread.run_sync(_copy_and_sync, source, tree.work.fd, name, size)
            if node.layer.writable:  # truncated, and copied up, meanwhile
                remove(tree.work.fd, name)
            else:
                tree.work.keep_prepared(number, name)
        except OSError:
            remove(tree.work.fd, name)
            raise
        finally:
            del self._under_way[number]
            done.set()


def _copy_and_sync(source: int, work_fd: int, name: bytes, size: int) -> None:
    """Copy and write out; what follows needs no more than the order that the journal keeps."""
    fill(source, work_fd, name, size)
    sync(work_fd, name)


def _has_contents(node: Node) -> bool:
    return stat.S_ISREG(node.attr.st_mode) and node.attr.st_size > 0
