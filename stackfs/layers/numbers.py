"""Inode numbers of the stack, which are its FUSE node ids too. Pure.

A file's number says where it was made: the number of the layer in the upper bits, the inode
number there in the lower 48. Copy-up and unpacking move a file and write its number into an
extended attribute, so that a program sees the same number for as long as the file lives: through
copy-up, a new daemon, a checkpoint, and a restart elsewhere.
"""

import hashlib
import struct
from typing import Final

BARRIER: Final = 1
"""The barrier directory: FUSE_ROOT_ID."""

ROOT: Final = 2
"""The pod's root directory."""

FIRST_UPPER: Final = 256
"""Layer number of a pod's first upper layer; the lower layers given to it are 1, 2, …"""

_INODE_BITS = 48


def inode_number(layer: int, device: int | None, inode: int) -> int:
    """Return the number of a file made in a layer.

    Args:
        layer: the layer's number, 1 to 16383.
        device: None where the file is on the file system of the layer's root, else its device.
        inode: its number there.

    Returns:
        Without a device and for inode < 2**48 a number of its own, below 2**62; else one that
        another file has with a probability of 2**-55.
    """
    if device is None and inode >> _INODE_BITS == 0:
        return layer << _INODE_BITS | inode
    digest = hashlib.blake2b(struct.pack("<QQQ", layer, device or 0, inode), digest_size=8)
    return 1 << 62 | int.from_bytes(digest.digest(), "little") >> 2


def next_number(number: int) -> int:
    """Return another number to try where two files claim *number*."""
    return inode_number(0, number, number)
