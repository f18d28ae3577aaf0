"""FUSE requests to the tree and back: a request in, a reply out, no policy.

Handlers of local calls await nothing; only copying up a big file does, in a thread. What each
request means is documented at pyfuse3.Operations.
"""

# ruff: noqa: D102
# mypy: disable-error-code="explicit-override"

import errno
import mmap
import os
import stat
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT, RequestContext, XAttrNameT

from stackfs import attributes, barrier, callers, names, requests
from stackfs.background import Copier
from stackfs.intents import note_loss, note_new, note_xattr
from stackfs.layers.numbers import BARRIER
from stackfs.listings import Listings
from stackfs.nodes import FOREVER, Directory, Node
from stackfs.rename import rename
from stackfs.replies import replies
from stackfs.tree import NAME_MAX, Tree

_OPENS = not hasattr(pyfuse3, "HANDLE_IS_INODE")
"""Whether the kernel must ask for opening: a pyfuse3 without the patch (patches/) does not tell the
inode number otherwise."""

_BY_USER = 1 << 63
"""Of a file's handle: it is not user 0 who writes."""

_SET_ID = stat.S_ISUID | stat.S_ISGID


class Operations(pyfuse3.Operations):
    """The request handlers over one tree."""

    supports_dot_lookup = False
    enable_writeback_cache = True
    enable_acl = True

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.tree = tree
        self._listings = Listings()
        self._contents = tree.inodes.contents
        self._copier = Copier(tree)
        self._host = callers.pid_namespace(os.getpid()) or ""
        self._barrier = _barrier_attributes()
        self._absent = pyfuse3.EntryAttributes()
        self._absent.st_ino = InodeT(0)
        self._absent.entry_timeout = FOREVER
        # Page-aligned: copying to a buffer whose offset in its page is just above the source's
        # is several times slower on some processors.
        self._buffer = memoryview(mmap.mmap(-1, 1 << 20))
        tree.root.attr.entry_timeout = barrier.STAT_TIMEOUT

    # --- the barrier ---------------------------------------------------------------------

    def _check_barrier(self, ctx: RequestContext) -> None:
        if not barrier.may_pass(callers.pid_namespace(ctx.pid), self._host):
            raise PermissionError(errno.EACCES, "not from within a pod")

    def _node(self, ino: int) -> Node:
        node = self.tree.node(ino)
        if node is None:
            raise OSError(errno.EROFS if ino == BARRIER else errno.ESTALE, "no such inode")
        return node

    def _directory(self, ino: int) -> Directory:
        node = self._node(ino)
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, "is no directory")
        return node

    # --- looking -------------------------------------------------------------------------

    @replies
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        tree = self.tree
        tree.inodes.trim()
        if parent_inode == BARRIER:
            self._check_barrier(ctx)
            if name != b"root":
                raise FileNotFoundError(errno.ENOENT, "no such name")
            return self._refer(tree.root)
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        node = tree.child(self._directory(parent_inode), name)
        return self._absent if node is None else self._refer(node)

    def _refer(self, node: Node) -> pyfuse3.EntryAttributes:
        self.tree.inodes.refer(node)
        return self.tree.attributes(node)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        self.tree.inodes.forget(inode_list)

    @replies
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        if inode == BARRIER:
            self._check_barrier(ctx)
            return self._barrier
        return self.tree.attributes(self._node(inode))

    @replies
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(self.tree.readlink(self._node(inode)))

    @replies
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        found = os.fstatvfs(self.tree.upper.fd)
        told = pyfuse3.StatvfsData()
        for field in told.__getstate__():
            setattr(told, field, getattr(found, field, 0))
        told.f_namemax = NAME_MAX
        return told

    # --- directories ---------------------------------------------------------------------

    @replies
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Return the inode number; or the kernel shall not ask, and keeps names until one changes.

        Source: fs/fuse/file.c, fuse_file_open(), v6.12: what follows from ENOSYS.
        """
        if not _OPENS:
            raise OSError(errno.ENOSYS, "not needed: the kernel stops asking")
        if inode == BARRIER:
            self._check_barrier(ctx)
        return FileHandleT(inode)

    @replies
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        tree = self.tree
        tree.inodes.trim()
        directory = None if fh == BARRIER else self._directory(fh)
        if directory is None:
            told = self._listings.after(BARRIER, (b"root",), start_id)
        else:
            told = self._listings.after(directory.attr.st_ino, tree.entries(directory), start_id)
        for position, name in told:
            node = self._listed(directory, name)
            if node is None:
                attr = self._dot(directory, name)
                if attr is not None and not pyfuse3.readdir_reply(
                    token, FileNameT(name), attr, position
                ):
                    return
            elif pyfuse3.readdir_reply(token, FileNameT(name), tree.attributes(node), position):
                tree.inodes.refer(node)
            else:
                return

    def _listed(self, directory: Directory | None, name: bytes) -> Node | None:
        """Return the inode of a listed name, None for a dot and for a name that has gone."""
        if name in (b".", b".."):
            return None
        return self.tree.root if directory is None else self.tree.child(directory, name)

    def _dot(self, directory: Directory | None, name: bytes) -> pyfuse3.EntryAttributes | None:
        """Return what `.` and `..` are; the kernel takes only the number and type from it."""
        if name not in (b".", b".."):
            return None
        if directory is None:
            return self._barrier
        return directory.attr if name == b"." else (directory.parent or directory).attr

    @replies
    async def releasedir(self, fh: FileHandleT) -> None:
        pass

    @replies
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        if fh != BARRIER:
            attributes.sync_directory(self.tree, self._directory(fh))

    # --- contents: a handle is an inode number ---------------------------------------------

    @replies
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> pyfuse3.FileInfo:
        """Return the inode number; or the kernel shall not ask.

        A file is copied up when it is first changed; to be truncated it comes to setattr().
        """
        if not _OPENS:
            raise OSError(errno.ENOSYS, "not needed: the kernel stops asking")
        return pyfuse3.FileInfo(fh=FileHandleT(inode | (_BY_USER if ctx.uid else 0)))

    @replies
    async def read(self, fh: FileHandleT, off: int, size: int) -> memoryview:  # type: ignore[override]
        fd = self._contents.for_reading(self._node(fh & ~_BY_USER))
        if size > len(self._buffer):
            self._buffer = memoryview(mmap.mmap(-1, size))
        return self._buffer[: os.preadv(fd, [self._buffer[:size]], off)]

    @replies
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write; the time of change stays, since the kernel has the say over it and tells it."""
        node = self._node(fh & ~_BY_USER)
        if not node.layer.writable:
            await self._copier.copy_up(node)
        attr = self.tree.attributes(node)
        times = (attr.st_atime_ns, attr.st_mtime_ns)
        fd = self._contents.for_writing(node)
        count = os.pwrite(fd, buf, off)
        os.utime(fd, ns=times)
        node.xattrs = node.xattrs and None  # the backing file loses its capabilities
        node.stale = True
        if attr.st_mode & _SET_ID and fh & _BY_USER:
            attributes.clear_set_id(self.tree, node)
            # The kernel runs programs by the mode that it remembers.
            pyfuse3.invalidate_inode(attr.st_ino, attr_only=True)
        return count

    @replies
    async def release(self, fh: FileHandleT) -> None:
        pass

    @replies
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        node = self._node(fh & ~_BY_USER)
        attributes.sync(self.tree, node, self._contents.for_reading(node), data_only=datasync)

    @replies
    async def flush(self, fh: FileHandleT) -> None:
        raise OSError(errno.ENOSYS, "not needed: the kernel stops asking")

    @replies
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        raise OSError(errno.ENOSYS, "the kernel decides: default_permissions")

    # --- changing ------------------------------------------------------------------------

    @replies
    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node = self._node(inode)
        wanted = attributes.Change(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        if attributes.is_moot(self.tree, node, wanted):
            attributes.remember(self.tree, node, wanted)
        elif wanted != attributes.NOTHING:
            await self._copier.copy_up(node, contents=wanted.size != 0)
            attributes.change(self.tree, node, wanted)
            if wanted.size is not None and node.attr.st_mode & _SET_ID and ctx.uid:
                attributes.clear_set_id(self.tree, node)
        return self.tree.attributes(node)

    @replies
    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Make a file; a regular one stays open, since it is mostly written to next.

        There is no create(): the kernel then opens as if the file had been there before, and does
        not ask for that either, nor for releasing (fs/fuse/dir.c, fuse_atomic_open(), v6.12).
        """
        parent = self._directory(parent_inode)
        note_new(self.tree, requests.MKNOD, ctx.pid, parent, name)
        if stat.S_ISREG(mode):
            node, fd = names.create(self.tree, parent, name, mode, _owner(ctx))
            self._contents.hold(node, fd)
        else:
            node = names.mknod(self.tree, parent, name, mode, rdev, _owner(ctx))
        return self._refer(node)

    @replies
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._directory(parent_inode)
        note_new(self.tree, requests.MKDIR, ctx.pid, parent, name)
        return self._refer(names.mkdir(self.tree, parent, name, mode, _owner(ctx)))

    @replies
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._directory(parent_inode)
        note_new(self.tree, requests.SYMLINK, ctx.pid, parent, name)
        return self._refer(names.symlink(self.tree, parent, name, target, _owner(ctx)))

    @replies
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node, parent = self._node(inode), self._directory(new_parent_inode)
        await self._copier.copy_up(node)
        note_new(self.tree, requests.LINK, ctx.pid, parent, new_name, node)
        names.link(self.tree, node, parent, new_name)
        return self._refer(node)

    @replies
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._directory(parent_inode)
        note_loss(self.tree, requests.UNLINK, ctx.pid, parent, name)
        names.unlink(self.tree, parent, name)

    @replies
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._directory(parent_inode)
        note_loss(self.tree, requests.RMDIR, ctx.pid, parent, name)
        names.rmdir(self.tree, parent, name)

    @replies
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        old, new = self._directory(parent_inode_old), self._directory(parent_inode_new)
        moving = self.tree.existing(old, name_old)
        if not isinstance(moving, Directory):
            await self._copier.copy_up(moving)
        note_loss(self.tree, requests.RENAME, ctx.pid, old, name_old, (new, name_new))
        rename(self.tree, old, name_old, new, name_new, flags)

    @replies
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        xattrs = {} if inode == BARRIER else self.tree.xattrs(self._node(inode))
        value = xattrs.get(os.fsdecode(name))
        if value is None:  # mostly so: the kernel asks for capabilities before a first write
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value

    @replies
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        if inode == BARRIER:
            return []
        return [XAttrNameT(os.fsencode(name)) for name in self.tree.xattrs(self._node(inode))]

    @replies
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        node = self._node(inode)
        await self._copier.copy_up(node)
        note_xattr(self.tree, requests.SETXATTR, ctx.pid, node, name)
        attributes.set_xattr(self.tree, node, os.fsdecode(name), value)
        if name == b"system.posix_acl_access" and not _is_in_group(ctx, node):
            attributes.clear_set_group_id(self.tree, node)

    @replies
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        node = self._node(inode)
        if os.fsdecode(name) in self.tree.xattrs(node):
            note_xattr(self.tree, requests.REMOVEXATTR, ctx.pid, node, name)
        attributes.remove_xattr(self.tree, node, os.fsdecode(name))


def _is_in_group(ctx: RequestContext, node: Node) -> bool:
    """Tell whether a caller is in a file's group, or root."""
    gid = node.attr.st_gid
    return ctx.uid == 0 or gid == ctx.gid or gid in callers.groups(ctx.pid)


def _owner(ctx: RequestContext) -> names.Owner:
    return names.Owner(ctx.uid, ctx.gid, ctx.umask)


def _barrier_attributes() -> pyfuse3.EntryAttributes:
    attr = pyfuse3.EntryAttributes()
    attr.st_ino = pyfuse3.ROOT_INODE
    attr.st_mode = ModeT(stat.S_IFDIR | 0o700)
    attr.st_nlink = 3
    attr.entry_timeout = attr.attr_timeout = barrier.STAT_TIMEOUT
    return attr
