"""The request handlers of a pod whose ids are shifted: those in whose requests ids are.

What the kernel is told of an inode is shifted where it is read (Shift.fill); here is what the
kernel asks with, and extended attributes, both ways. A write by the pod's root takes set-id bits
away as one by any user does: for that the kernel wants CAP_FSETID over the host, whatever the file
system (fs/attr.c, setattr_should_drop_suidgid(), v6.1).
"""

# ruff: noqa: D102
# mypy: disable-error-code="explicit-override"

import errno
import os
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar, cast

import pyfuse3
from pyfuse3 import FileHandleT, FileNameT, InodeT, ModeT, RequestContext, XAttrNameT

from stackfs.operations import Operations
from stackfs.shift import Shift
from stackfs.tree import Tree

P = ParamSpec("P")
R = TypeVar("R")


class _Caller(NamedTuple):
    """A RequestContext of the pod's ids: nobody can make one of pyfuse3's."""

    pid: int
    uid: int
    gid: int
    umask: int


class ShiftedOperations(Operations):
    """The request handlers over a tree that was given the same *shift*."""

    def __init__(self, tree: Tree, shift: Shift) -> None:
        super().__init__(tree)
        self._shift = shift

    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return await super().mknod(parent_inode, name, mode, rdev, self._maker(ctx))

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await super().mkdir(parent_inode, name, mode, self._maker(ctx))

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await super().symlink(parent_inode, name, target, self._maker(ctx))

    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_uid:
            attr.st_uid = _replied(self._shift.inside, attr.st_uid)
        if fields.update_gid:
            attr.st_gid = _replied(self._shift.inside, attr.st_gid)
        return await super().setattr(inode, attr, fields, fh, ctx)

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        value = await super().getxattr(inode, name, ctx)
        return self._shift.value_outside(os.fsdecode(name), value)

    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        value = _replied(self._shift.value_inside, os.fsdecode(name), value)
        uid = 0 if ctx.uid == self._shift.base else ctx.uid
        caller = _Caller(ctx.pid, uid, ctx.gid, ctx.umask)  # the groups of files are the kernel's
        await super().setxattr(inode, name, value, cast(RequestContext, caller))

    def _maker(self, ctx: RequestContext) -> RequestContext:
        """Return who makes a file, as the layers know users and groups.

        Raises:
            FUSEError: EOVERFLOW, they do not.
        """
        uid, gid = (_replied(self._shift.maker, number) for number in (ctx.uid, ctx.gid))
        return cast(RequestContext, _Caller(ctx.pid, uid, gid, ctx.umask))


def _replied(convert: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Convert what the kernel has sent, or reply with the errno."""
    try:
        return convert(*args, **kwargs)
    except OSError as e:
        raise pyfuse3.FUSEError(e.errno or errno.EIO) from e
