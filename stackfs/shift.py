"""A pod's user and group ids, which are others for the kernel than in the layers. Pure.

The root of a pod with a user namespace is not the kernel's user 0, but its files belong to user 0
in the layers. So the daemon tells the kernel an id plus the pod's base, and takes the base away
from what the kernel asks with: user 0 of a layer is user BASE for the kernel, which is user 0 in a
namespace whose ids begin at BASE (user_namespaces(7)).

An id beyond the namespace's is nobody's. The kernel is told an id that is none, and then treats
the file as it treats every one of that kind: all see it as the overflow user's, what its mode lets
others read they may read, and it can be neither written to, changed nor removed.

Source: fs/fuse/inode.c, fuse_change_attributes_common(); HAS_UNMAPPED_ID(), include/linux/fs.h;
notify_change(), fs/attr.c, v6.1.
"""

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stackfs.nodes import Node

COUNT: Final = 1 << 16
"""How many ids a namespace has."""

MOST: Final = (1 << 32) - 1 - COUNT
"""The highest base: the last id of all means that there is none."""

_NONE: Final = 0xFFFFFFFF
_OVERFLOW: Final = 65534

_ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")
_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")  # tag, permissions, id
_NAMED: Final = (0x02, 0x08)  # ACL_USER, ACL_GROUP
_ACL_VERSION: Final = 2

_CAPABILITY: Final = "security.capability"
_CAPABILITY_V2: Final = 20
_CAPABILITY_V3: Final = 24
_REVISION: Final = 0xFF000000
_REVISION_2: Final = 0x02000000
_REVISION_3: Final = 0x03000000


@dataclass(frozen=True, slots=True)
class Shift:
    """The ids 0 to COUNT - 1 of the layers are *base* to *base* + COUNT - 1 for the kernel."""

    base: int

    def fill(self, node: "Node", status: os.stat_result) -> None:
        """Take the attributes of the backing file, as the kernel is to be told them."""
        node.fill(status)
        node.attr.st_uid = self.outside(status.st_uid)
        node.attr.st_gid = self.outside(status.st_gid)

    def outside(self, number: int) -> int:
        """Return what the kernel is told for an id of a layer."""
        return self.base + number if number < COUNT else _NONE

    def inside(self, number: int) -> int:
        """Return the id of a layer for one of the kernel's.

        Raises:
            OSError: EOVERFLOW, it is none of the namespace's.
        """
        if not self.base <= number < self.base + COUNT:
            raise OSError(errno.EOVERFLOW, f"id {number} is none of the pod's")
        return number - self.base

    def maker(self, number: int) -> int:
        """Return the same for whoever makes a file: what the host's root makes is the pod's root's.

        Raises:
            OSError: EOVERFLOW, as above.
        """
        return 0 if number == 0 else self.inside(number)

    def value_outside(self, name: str, value: bytes) -> bytes:
        """Return what the kernel is told for an extended attribute of a layer."""
        if name in _ACLS:
            return _acl(value, self._entry_outside)
        if name == _CAPABILITY:
            return self._capability_outside(value)
        return value

    def value_inside(self, name: str, value: bytes) -> bytes:
        """Return the extended attribute of a layer for what the kernel sets.

        Raises:
            OSError: EINVAL, an id in it is none of the namespace's.
        """
        if name in _ACLS:
            return _acl(value, self._entry_inside)
        if name == _CAPABILITY:
            return self._capability_inside(value)
        return value

    def _entry_outside(self, number: int) -> int:
        """Return the id of an entry; it must be one, or the kernel refuses the whole ACL."""
        return self.base + number if number < COUNT else _OVERFLOW

    def _entry_inside(self, number: int) -> int:
        try:
            return self.inside(number)
        except OSError as e:
            raise OSError(errno.EINVAL, str(e)) from e

    def _capability_outside(self, value: bytes) -> bytes:
        """Say whose root it is that has the capabilities of a file: the pod's.

        Without that the kernel takes it for the root of who has mounted the file system, and
        passes over them in the pod (capabilities(7), "Namespaced file capabilities").
        """
        (magic,) = struct.unpack_from("<I", value.ljust(4, b"\0"))
        if len(value) == _CAPABILITY_V2 and magic & _REVISION == _REVISION_2:
            rest = value[4:] + struct.pack("<I", self.base)
            return struct.pack("<I", magic & ~_REVISION | _REVISION_3) + rest
        if len(value) == _CAPABILITY_V3 and magic & _REVISION == _REVISION_3:
            (root,) = struct.unpack_from("<I", value, _CAPABILITY_V2)
            return value[:_CAPABILITY_V2] + struct.pack("<I", self.outside(root))
        return value

    def _capability_inside(self, value: bytes) -> bytes:
        (magic,) = struct.unpack_from("<I", value.ljust(4, b"\0"))
        if len(value) != _CAPABILITY_V3 or magic & _REVISION != _REVISION_3:
            return value
        (found,) = struct.unpack_from("<I", value, _CAPABILITY_V2)
        root = self._entry_inside(found)
        if root:
            return value[:_CAPABILITY_V2] + struct.pack("<I", root)
        return struct.pack("<I", magic & ~_REVISION | _REVISION_2) + value[4:_CAPABILITY_V2]


def _acl(value: bytes, change: Callable[[int], int]) -> bytes:
    """Return an ACL with the ids of users and groups changed.

    One that cannot be understood stays as it is, for the kernel or the disk to judge.

    Source: acl(5); include/uapi/linux/posix_acl_xattr.h.
    """
    if value[:4] != _ACL_HEADER.pack(_ACL_VERSION) or (len(value) - 4) % _ACL_ENTRY.size:
        return value
    entries = (
        _ACL_ENTRY.pack(tag, bits, change(number) if tag in _NAMED else number)
        for tag, bits, number in _ACL_ENTRY.iter_unpack(value[4:])
    )
    return value[:4] + b"".join(entries)
