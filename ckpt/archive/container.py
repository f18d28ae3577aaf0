"""The tar around the blobs: one way to write it, and only that way is read.

Members follow one another in a fixed order (docs/format.md); their headers hold a name and a size
and nothing else that could differ. The reader therefore interprets no header: it takes name and
size, makes the header that the writer would have made, and compares. Padding must be zeros, the
file must end after two zero blocks. So every byte of the file counts.

Source: POSIX.1-2017 pax(1), "ustar Interchange Format"; base-256 sizes as GNU tar writes them.
"""

import os
import re
from typing import Final

from msgspec import Struct

from ckpt.archive.errors import FormatError

BLOCK: Final = 512
MAX_MEMBERS: Final = 1024
_NAME: Final = re.compile(rb"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
_OCTAL_LIMIT: Final = 8**11


class Member(Struct, frozen=True):
    """A file in the tar: its name, where its content begins, and the content's bytes."""

    name: str
    offset: int
    size: int


def header(name: str, size: int) -> bytes:
    """Return the header block of the member *name* with *size* bytes."""
    block = bytearray(BLOCK)
    block[0 : len(name)] = name.encode()
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2  # owner and group: root
    block[124:136] = _size_field(size)
    block[136:148] = b"00000000000\0"  # modification time
    block[148:156] = b" " * 8  # the sum counts its own field as blanks
    block[156:157] = b"0"  # regular file
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _size_field(size: int) -> bytes:
    if size < _OCTAL_LIMIT:
        return b"%011o\0" % size
    return b"\x80" + size.to_bytes(11, "big")


def _parse_size(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field[:11], 8)
    except ValueError:
        return -1


def padding(size: int) -> int:
    """Return how many zero bytes follow a content of *size* bytes."""
    return -size % BLOCK


def read_exactly(fd: int, offset: int, size: int) -> bytes:
    """Return *size* bytes of the file at *offset*.

    Raises:
        FormatError: the file ends before.
    """
    pieces, got = [], 0
    while got < size:
        piece = os.pread(fd, size - got, offset + got)
        if not piece:
            raise FormatError(f"the file ends at byte {offset + got}, in the middle of the archive")
        pieces.append(piece)
        got += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def members(fd: int) -> list[Member]:
    """Return the members of the tar, in order.

    Raises:
        FormatError: the tar differs, in whatever byte outside of the contents, from one that the
            writer makes.
    """
    file_size = os.fstat(fd).st_size
    found: list[Member] = []
    offset = 0
    while (block := read_exactly(fd, offset, BLOCK)) != bytes(BLOCK):
        if len(found) == MAX_MEMBERS:
            raise FormatError(f"more than {MAX_MEMBERS} members")
        member = _member(block, offset)
        offset = member.offset + member.size
        if offset > file_size:
            raise FormatError(
                f"{member.name}: {member.size} bytes announced at byte {member.offset}, "
                f"but the file has {file_size}"
            )
        _check_zeros(fd, offset, padding(member.size))
        offset += padding(member.size)
        found.append(member)
    _check_zeros(fd, offset, 2 * BLOCK)
    if file_size != offset + 2 * BLOCK:
        raise FormatError(f"{file_size - offset - 2 * BLOCK} bytes follow the end of the archive")
    return found


def _member(block: bytes, offset: int) -> Member:
    name, _, _ = block[:100].partition(b"\0")
    if not _NAME.fullmatch(name):
        what = "not an archive of this format" if offset == 0 else f"no member at byte {offset}"
        raise FormatError(what)
    size = _parse_size(block[124:136])
    if size < 0 or block != header(name.decode(), size):
        raise FormatError(f"{name.decode()}: the tar header at byte {offset} is not canonical")
    return Member(name.decode(), offset + BLOCK, size)


def _check_zeros(fd: int, offset: int, size: int) -> None:
    if read_exactly(fd, offset, size) != bytes(size):
        raise FormatError(f"padding at byte {offset} is not zero")
