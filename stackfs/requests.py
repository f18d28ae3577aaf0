"""Requests as the kernel writes them to /dev/fuse. Pure.

pyfuse3 reads them as a rule; this is for those that the kernel sends again because a daemon took
them and died (resent.py).

Source: include/uapi/linux/fuse.h, v6.12.
"""

import struct
from dataclasses import dataclass
from typing import Final

LOOKUP: Final = 1
FORGET: Final = 2
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
SETXATTR: Final = 21
REMOVEXATTR: Final = 24
INTERRUPT: Final = 36
BATCH_FORGET: Final = 42
RENAME2: Final = 45

UNORDERED: Final = (FORGET, INTERRUPT, BATCH_FORGET)
"""Those that the kernel may put before older ones."""

MAX_BYTES: Final = (1 << 20) + (1 << 16)
"""Of a request: a write of libfuse's max_write, with room for its headers."""

_RESENT = 1 << 63
_HEADER = struct.Struct("<IIQQIIIHH")


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        opcode: what is asked for.
        unique: number of the request.
        node: the inode that it is about.
        pid: the caller's thread id.
        data: all of it, with its header.
    """

    opcode: int
    unique: int
    node: int
    pid: int
    data: bytes

    @classmethod
    def parse(cls, data: bytes) -> "Request":
        """Read a request."""
        _, opcode, unique, node, _, _, pid, _, _ = _HEADER.unpack_from(data)
        return cls(opcode, unique, node, pid, data)

    @property
    def body(self) -> bytes:
        """What follows the header."""
        return self.data[_HEADER.size :]

    @property
    def resent(self) -> bool:
        """Whether a daemon has taken it before."""
        return bool(self.unique & _RESENT)

    def as_lookup(self, name: bytes) -> bytes:
        """Return a request for *name* in the same directory, with the same number.

        The reply has the form of the reply to LINK.
        """
        body = name + b"\0"
        fields = list(_HEADER.unpack_from(self.data))
        fields[:2] = _HEADER.size + len(body), LOOKUP
        return _HEADER.pack(*fields) + body

    def without_flags(self) -> bytes:
        """Return a SETXATTR request that succeeds whether the attribute is there or not."""
        at = _HEADER.size + 4
        return self.data[:at] + bytes(4) + self.data[at + 4 :]


DONT_MASK: Final = 1 << 6
"""The kernel leaves applying the umask to the file system, which knows of default ACLs."""

CACHE_SYMLINKS: Final = 1 << 23
"""The kernel may keep what symbolic links say. No request changes it."""

HANDLE_KILLPRIV_V2: Final = 1 << 28
"""The file system clears set-id bits and file capabilities of what is written to. Otherwise the
kernel asks for the attribute `security.capability` before each write(2)."""


ATOMIC_O_TRUNC: Final = 1 << 3
"""The file system truncates a file that is opened with O_TRUNC. Otherwise the kernel asks for that
by itself, as it must where it does not ask for opening."""


def accept(init: bytes, reply: bytes, wanted: int, unwanted: int) -> bytes:
    """Return the reply to an INIT request with other flags.

    Args:
        init: the request.
        reply: libfuse's reply.
        wanted: flags to accept if the kernel offers them; libfuse 3.14 cannot be told to.
        unwanted: flags not to accept.
    """
    (offered,) = struct.unpack_from("<I", init, _HEADER.size + 12)
    (accepted,) = struct.unpack_from("<I", reply, 28)
    return reply[:28] + struct.pack("<I", (accepted | wanted & offered) & ~unwanted) + reply[32:]


def done(unique: int) -> bytes:
    """Return the reply to a request that says no more than that it has been done."""
    return struct.pack("<IiQ", 16, 0, unique)


def notification(code: int) -> bytes:
    """Return a notification without contents."""
    return struct.pack("<IiQ", 16, code, 0)
