"""Copying a big file up while other requests go on."""

import functools
import os
import stat
from typing import Final

import trio

from stackfs import loop
from stackfs.copyup import copy_up
from stackfs.layers.copying import fill
from stackfs.layers.work import remove
from stackfs.nodes import Node
from stackfs.tree import Tree

_BIG: Final = 1 << 18
"""Bytes from which on others shall not wait for the copying: a thread costs about as much as
copying a quarter of this."""


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
        if contents and not node.layer.writable and _is_big(node):
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
            source = tree.inodes.contents.open(node, os.O_RDONLY)
            size = os.fstat(source).st_size
            loop.yield_reader()
            work = functools.partial(fill, source, tree.work.fd, name, size, lasting=True)
            await trio.to_thread.run_sync(work)
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


def _is_big(node: Node) -> bool:
    return stat.S_ISREG(node.attr.st_mode) and node.attr.st_size > _BIG
