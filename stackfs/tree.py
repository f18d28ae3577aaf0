"""The stack as one tree: what is visible, where it is, and what it looks like.

Reading is here; copyup.py brings a file into the upper layer, names.py makes and removes names,
rename.py moves them, and seal.py changes the upper layer. All of them work synchronously on one
thread, so that every request sees the tree between two others. FUSE is not known here.
"""

import os
import resource
import stat
from collections.abc import Callable

import pyfuse3

from stackfs.inodes import Inodes
from stackfs.journal import Journal
from stackfs.layers import copying, redirect, whiteout
from stackfs.layers.layer import Layer, lift, listing
from stackfs.layers.numbers import ROOT
from stackfs.layers.redirect import Path, Way
from stackfs.layers.union import Entry, merge
from stackfs.layers.walk import open_beneath
from stackfs.layers.work import Work
from stackfs.nodes import Directory, Node
from stackfs.shift import Shift

NAME_MAX = 255


class Tree:
    """A stack of layers, seen as one tree.

    Attributes:
        upper: the writable layer, which every change goes to.
        work: the work directory beside it.
        limbo: stands for the layer of files without a name that may still be changed.
        root: the pod's root directory.
        fill: has an inode take the attributes of its backing file (Node.fill).
        inodes: what the kernel refers to.
        remembered: how often a name was found, or not, in what was read before.
        read: how many inodes were read.
        listed: how many directories were.
        copied_up: how many files were copied to the upper layer.
    """

    def __init__(
        self,
        upper: Layer,
        below: list[Layer],
        work: Work,
        journal: Journal | None = None,
        shift: Shift | None = None,
    ) -> None:
        """Stack *upper* over *below*, which is ordered top first.

        With *shift* the kernel is told other users and groups than the layers have.
        """
        self.fill: Callable[[Node, os.stat_result], None] = shift.fill if shift else Node.fill
        self.upper = upper
        self.work = work
        self.limbo = Layer(upper.path, upper.fd, upper.number, writable=True)
        stack = [upper, *below]
        visible = redirect.until_opaque([layer.fd for layer in stack])
        self.root = Directory(ROOT, stack[: len(visible)], None, b".")
        self.root.fds = {layer: layer.fd for layer in (upper, *below)}
        self.root.stale = True
        self.remembered = self.read = self.listed = self.copied_up = 0
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self.inodes = Inodes(self.root, most, journal or Journal())

    def child(self, parent: Directory, name: bytes) -> Node | None:
        """Return the inode of a name, or None where there is no such name."""
        entry = self.entries(parent).get(name)
        node = None if entry is None else self.inodes.get(entry.ino)
        if entry is not None and node is None:
            return self._load(parent, name, entry)
        self.remembered += 1
        return node

    def node(self, ino: int) -> Node | None:
        """Return an inode by number, also one that an earlier daemon has told the kernel of."""
        node = self.inodes.get(ino)
        return self._recalled(ino) if node is None and self.inodes.known else node

    def _recalled(self, ino: int) -> Node | None:
        path = []
        while (node := self.inodes.get(ino)) is None:
            place = self.inodes.known.get(ino)
            if place is None:
                return None
            path.append((ino, place.name))
            ino = place.parent
        for number, name in reversed(path):
            child = self.child(node, name) if isinstance(node, Directory) else None
            if child is None or child.attr.st_ino != number:
                return None
            node = child
        return node

    def existing(self, parent: Directory, name: bytes) -> Node:
        """Return the inode of a name.

        Raises:
            FileNotFoundError: there is no such name.
        """
        node = self.child(parent, name)
        if node is None:
            raise FileNotFoundError(f"no {name!r} here")
        return node

    def directory(self, ino: int) -> Directory:
        """Return an inode that is a directory."""
        node = self.inodes[ino]
        if not isinstance(node, Directory):
            raise NotADirectoryError(f"inode {ino} is no directory")
        return node

    def entries(self, directory: Directory) -> dict[bytes, Entry[Layer]]:
        """Return the names in a directory, listing it where that was not done yet."""
        if directory.entries is None:
            fds = ((at, self.inodes.directory_fd(directory, at)) for at in directory.layers)
            self.listed += 1
            directory.subdirectories = None
            directory.entries = merge((at, listing(fd)) for at, fd in fds)
        return directory.entries

    def _load(self, parent: Directory, name: bytes, entry: Entry[Layer]) -> Node:
        """Take an inode into the table."""
        self.read += 1
        layer = entry.layers[0]
        dir_fd = self.inodes.directory_fd(parent, layer)
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        backing = (status.st_dev, status.st_ino)
        ino = layer.inode_number(status, whiteout.inside(dir_fd, name) if layer.numbered else None)
        place = (parent, name) if entry.directory else None
        entry.ino, node = self.inodes.claim(ino, backing, place)
        if node is None:
            node = self._new(parent, name, entry)
            self.fill(node, status)
            node.stale = entry.directory
            self.inodes.add(node)
        elif node.fd >= 0 and node.linked:  # found again by another of its names
            self.inodes.move(node, parent, name)
        return node

    def _new(self, parent: Directory, name: bytes, entry: Entry[Layer]) -> Node:
        if not entry.directory:
            return Node(entry.ino, entry.layers[0], parent, name)
        directory = Directory(entry.ino, [entry.layers[0]], parent, name)
        self._find_layers(directory, parent, entry.layers)
        return directory

    def _find_layers(
        self, directory: Directory, parent: Directory, named: tuple[Layer, ...]
    ) -> None:
        """Find what merges into a directory, given the layers in which its parent has the name."""
        name = directory.name
        directory.layers, directory.moved, directory.redirect = [], {}, None
        for layer in named:
            directory.layers.append(layer)
            if layer is self.root.layers[-1]:
                return
            way = Way((name,))
            way.turn(self.inodes.directory_fd(parent, layer), name)
            if way.absolute or way.path != (name,):
                self._follow(directory, parent, way)
                return
            if way.ended:
                return

    def _follow(self, directory: Directory, parent: Directory, way: Way) -> None:
        """Find what merges into a directory below the layer that has a redirect of it."""
        at = directory.layers[-1]
        if at is directory.layer:
            above = () if way.absolute else self.below(parent)
            directory.redirect = above + way.path
        for layer in self.root.layers[self.root.layers.index(at) + 1 :]:
            if way.ended:
                return
            if way.absolute:
                above, start = (), layer.fd
            elif layer in parent.layers:
                above = self.inodes.path_in(parent, layer)
                start = self.inodes.directory_fd(parent, layer)
            else:
                continue
            asked = above + way.path
            fd = way.step(start)
            if fd >= 0:
                os.close(fd)
                directory.layers.append(layer)
                directory.moved[layer] = asked

    def below(self, directory: Directory) -> Path:
        """Return the path of a directory in what the layers below its topmost one show."""
        names: list[bytes] = []
        while directory.parent is not None:
            if directory.redirect is not None and directory.layer is self.upper:
                return directory.redirect + tuple(reversed(names))
            names.append(directory.name)
            directory = directory.parent
        return tuple(reversed(names))

    def redirect(self, directory: Directory) -> None:
        """Write where the layers below have what is in a directory of the upper one.

        Raises:
            OSError: EXDEV, the path is too long for that.
        """
        parent = directory.parent
        if parent is None or directory.layers == [self.upper] or directory.redirect is not None:
            return
        former = self.below(directory)
        places = {at: self.inodes.path_in(directory, at) for at in directory.layers[1:]}
        self.upper.note_redirect(former, self.inodes.path_in(directory, self.upper))
        dir_fd = self.inodes.directory_fd(parent, self.upper)
        whiteout.set_redirect(dir_fd, directory.name, redirect.encode(former))
        directory.redirect, directory.moved = former, places

    def made(self, parent: Directory, name: bytes, status: os.stat_result) -> Node:
        """Take into the table what was just made in the upper layer."""
        number = self.upper.inode_number(status, None)
        ino, _ = self.inodes.claim(number, (status.st_dev, status.st_ino))
        if ino != number:
            copying.set_number(self.inodes.directory_fd(parent, self.upper), name, ino)
        is_directory = stat.S_ISDIR(status.st_mode)
        entry = Entry((self.upper,), directory=is_directory, ino=ino)
        node = self._new(parent, name, entry)
        self.fill(node, status)
        node.name_unsynced = True
        if isinstance(node, Directory):
            node.entries = {}
        self.inodes.add(node)
        self.entries(parent)[name] = entry
        if is_directory and parent.subdirectories is not None:
            parent.subdirectories += 1
        parent.stale = True
        return node

    def attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        """Return the attributes of an inode, as they are now."""
        if node.stale:
            self.fill(node, self.status(node))
            if not node.linked:
                node.attr.st_nlink = 0
            elif isinstance(node, Directory) and len(node.layers) > 1:
                node.attr.st_nlink = 2 + self._count(node)
        return node.attr

    def _count(self, directory: Directory) -> int:
        """Return how many subdirectories are visible in a directory."""
        entries = self.entries(directory)
        if directory.subdirectories is None:
            directory.subdirectories = sum(entry.directory for entry in entries.values())
        return directory.subdirectories

    def status(self, node: Node) -> os.stat_result:
        """Return the status of the backing file."""
        if node.fd >= 0:
            return os.fstat(node.fd)
        path, dir_fd, follow = self.inodes.place(node)
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow)

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """Return the extended attributes of an inode that programs may see."""
        if node.xattrs is None:
            path, follow = self.inodes.path(node)
            node.xattrs = copying.read_xattrs(path, follow=follow)
        return node.xattrs

    def readlink(self, node: Node) -> bytes:
        """Return the target of a symbolic link."""
        path, dir_fd, follow = self.inodes.place(node)
        if follow:  # a pinned link: readlinkat(2) takes its O_PATH descriptor and an empty path
            return os.readlink(b"", dir_fd=node.fd)
        return os.readlink(path, dir_fd=dir_fd)

    def shows_below(self, parent: Directory, name: bytes) -> bool:
        """Tell whether *name* would show if the upper layer had nothing of that name.

        *parent* is in the upper layer.
        """
        for layer in parent.layers[1:]:
            dir_fd = self.inodes.directory_fd(parent, layer)
            try:
                status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            return not _hides(dir_fd, name, status)
        return False

    def seal(self, upper: Layer) -> None:
        """Make the upper layer read-only and put an empty one above it.

        Open files and inodes stay where they are; each is copied up before it changes.
        """
        self.upper.writable = False
        self.upper = self.root.layer = upper
        self.root.layers.insert(0, upper)
        self.root.fds[upper] = upper.fd
        self.root.stale = True

    def replace(self, old: list[Layer], new: Layer) -> None:
        """Let a layer take the place of those that were merged into it; it shows the same.

        A file that has lost the name it was known by, but has others, is reached by a descriptor:
        it is found in the new layer by one of those.
        """
        pinned = [node for node in self.inodes.pinned() if node.linked and node.layer in old]
        others = [self._paths(node, old) for node in pinned]
        moved = self.inodes.moved()
        self.inodes.replace(old, new)
        self.root.fds[new] = new.fd
        for directory in moved:
            self._find_again(directory)
        for node, paths in zip(pinned, others, strict=True):
            self._pin_in(new, node, paths)

    def _paths(self, node: Node, merged: list[Layer]) -> list[Path]:
        """Return the paths of a file of one of these layers in what they show together."""
        above = merged[: merged.index(node.layer)]
        return [lift(path, above) for path in node.layer.links(self.status(node))]

    def _find_again(self, directory: Directory) -> None:
        parent = directory.parent
        if parent is not None and directory.linked:
            self.inodes.close_directory(directory)
            named = self.entries(parent)[directory.name].layers
            self._find_layers(directory, parent, named)
            directory.entries = None

    def _pin_in(self, layer: Layer, node: Node, paths: list[Path]) -> None:
        for *above, name in paths:
            try:
                dir_fd = open_beneath(layer.fd, tuple(above))
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                self._pin_at(layer, node, dir_fd, name)
            finally:
                os.close(dir_fd)

    def _pin_at(self, layer: Layer, node: Node, dir_fd: int, name: bytes) -> None:
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if layer.inode_number(status, whiteout.inside(dir_fd, name)) == node.attr.st_ino:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
            self.inodes.hold(node, fd)
            node.backing = (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Close every descriptor but those of the layers; the journal ends."""
        self.inodes.close()


def _hides(dir_fd: int, name: bytes, status: os.stat_result) -> bool:
    """Tell whether this is a whiteout of either form."""
    if status.st_size == 0 and stat.S_ISREG(status.st_mode):
        return whiteout.attribute(whiteout.inside(dir_fd, name), whiteout.WHITEOUT) is not None
    return whiteout.is_whiteout(status)
