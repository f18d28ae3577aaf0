"""What is known of one inode."""

import os
from typing import Final

import pyfuse3

from stackfs.layers.layer import Layer
from stackfs.layers.redirect import Path
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
        contents: descriptor to read it by, -1 where it is not open (contents.py).
        changeable: whether *contents* can be written to.
        lookups: how many references the kernel holds.
        name_unsynced: whether its directory must be written out for the name to be durable.
        slot: where the journal counts *lookups*, 0 where the journal has nothing on it.
    """

    __slots__ = (
        "attr",
        "backing",
        "changeable",
        "contents",
        "fd",
        "layer",
        "linked",
        "lookups",
        "name",
        "name_unsynced",
        "parent",
        "slot",
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
        self.contents = -1
        self.changeable = False
        self.lookups = 0
        self.name_unsynced = False
        self.slot = 0

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
        moved: where it is in layers in which its parent does not have it under its name.
        redirect: where it is in what the layers below *layer* show, if its place does not tell.
        subdirectories: how many of its entries are directories, None where not counted.
    """

    __slots__ = ("entries", "fds", "layers", "moved", "redirect", "subdirectories")

    def __init__(
        self, ino: int, layers: list[Layer], parent: "Directory | None", name: bytes
    ) -> None:
        super().__init__(ino, layers[0], parent, name)
        self.layers = layers
        self.entries: dict[bytes, Entry[Layer]] | None = None
        self.subdirectories: int | None = None
        self.fds: dict[Layer, int] = {}
        self.moved: dict[Layer, Path] = {}
        self.redirect: Path | None = None
