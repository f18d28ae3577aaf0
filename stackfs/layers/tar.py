"""The tar format as far as a layer needs it: ustar headers with PAX records.

Reading is strict, because an archive may be hostile: every header is checked before anything is
allocated for it.

Source: POSIX.1-2017, pax, "pax Interchange Format" and "ustar Interchange Format".
"""

import dataclasses
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

BLOCK: Final = 512
MAX_PAX_BYTES: Final = 1 << 20
MAX_PATH_BYTES: Final = 4096

FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)
_PAX = b"x"
_KNOWN = frozenset((FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO, b"\0"))

_HEADER = struct.Struct(
    "100s 8s 8s 8s 12s 12s 8s c 100s 6s 2s 32s 32s 8s 8s 155s 12x".replace(" ", "")
)
_XATTR = b"SCHILY.xattr."
_SOCKET = b"STACKFS.socket"


class TarError(ValueError):
    """The archive is not one that can be unpacked; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive, without its contents.

    Attributes:
        path: as written, without a slash at the end.
        kind: one of this module's type flags.
        mode: permission bits.
        size: of the contents that follow, 0 but for FILE.
        mtime_ns: nanoseconds since the epoch.
        target: of a symbolic or hard link.
        device: major and minor number.
        xattrs: extended attributes by name.
        socket: an empty FILE that stands for a socket, which tar does not know.
    """

    path: bytes
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    socket: bool = False


# --- writing ---------------------------------------------------------------------------------


def encode(member: Member) -> bytes:
    """Return the headers of a member."""
    records = _pax_records(member)
    header = _header(member, member.kind, member.size)
    if not records:
        return header
    body = b"".join(_pax_record(key, value) for key, value in records)
    pax = Member(b"PaxHeaders/" + member.path[-80:], mode=0o644)
    return _header(pax, _PAX, len(body)) + padded(body) + header


def padded(data: bytes) -> bytes:
    """Return *data* filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def end() -> bytes:
    """Return what ends an archive."""
    return bytes(2 * BLOCK)


def _pax_records(member: Member) -> list[tuple[bytes, bytes]]:
    """Return what the ustar header cannot say."""
    records = []
    if len(member.path) > 100:
        records.append((b"path", member.path))
    if len(member.target) > 100:
        records.append((b"linkpath", member.target))
    for key, number, limit in (
        (b"uid", member.uid, 0o7777777),
        (b"gid", member.gid, 0o7777777),
        (b"size", member.size, 0o77777777777),
    ):
        if number > limit:
            records.append((key, b"%d" % number))
    if member.mtime_ns % 10**9 or not 0 <= member.mtime_ns < 8**11 * 10**9:
        records.append((b"mtime", _decimal_seconds(member.mtime_ns)))
    if member.socket:
        records.append((_SOCKET, b"1"))
    for name in sorted(member.xattrs):
        key = _XATTR + name.encode("utf-8", "surrogateescape")
        records.append((key, member.xattrs[name]))
    return records


def _decimal_seconds(ns: int) -> bytes:
    """Return seconds with nine decimals; PAX times may be negative."""
    sign = b"-" if ns < 0 else b""
    seconds, rest = divmod(abs(ns), 10**9)
    return b"%b%d.%09d" % (sign, seconds, rest)


def _pax_record(key: bytes, value: bytes) -> bytes:
    """Return a record: `LENGTH KEY=VALUE` and a newline, where LENGTH counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _header(member: Member, kind: bytes, size: int) -> bytes:
    seconds = member.mtime_ns // 10**9
    major, minor = member.device
    fields = [
        member.path[:100],
        _octal(member.mode & 0o7777, 8),
        _octal(member.uid, 8),
        _octal(member.gid, 8),
        _octal(size, 12),
        _octal(max(seconds, 0), 12),
        b" " * 8,
        kind,
        member.target[:100],
        b"ustar\0",
        b"00",
        b"",
        b"",
        _octal(major, 8),
        _octal(minor, 8),
        b"",
    ]
    fields[6] = b"%06o\0 " % sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields)


def _octal(number: int, width: int) -> bytes:
    """Return an octal field; a number too big for it is in a PAX record."""
    limit = 8 ** (width - 1)
    return b"%0*o" % (width - 1, number if number < limit else 0)


# --- reading ---------------------------------------------------------------------------------


def members(archive: BinaryIO) -> Iterator[Member]:
    """Yield the members of an archive; the caller reads the contents of each with `contents`.

    Raises:
        TarError: the archive is malformed or cut off.
    """
    pax: dict[bytes, bytes] = {}
    while True:
        header = read_exactly(archive, BLOCK)
        if not any(header):
            _read_end(archive)
            return
        member = _decode(header)
        if member.kind == _PAX:
            if pax:
                raise TarError("two extended headers in a row")
            pax = _read_pax(archive, member)
            continue
        yield _refine(member, pax)
        pax = {}


def contents(archive: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the contents of the member just read, in pieces of whole pages."""
    left = size
    while left:
        piece = read_exactly(archive, min(left, 1 << 20))
        left -= len(piece)
        yield piece
    read_exactly(archive, -size % BLOCK)


def read_exactly(archive: BinaryIO, count: int) -> bytes:
    """Read *count* bytes.

    Raises:
        TarError: the archive ends before.
    """
    data = archive.read(count)
    while len(data) < count:
        more = archive.read(count - len(data))
        if not more:
            raise TarError("the archive is cut off")
        data += more
    return data


def _read_end(archive: BinaryIO) -> None:
    """Check that nothing but zeros follows the first block of zeros."""
    read_exactly(archive, BLOCK)
    while rest := archive.read(1 << 16):
        if any(rest):
            raise TarError("data after the end of the archive")


def _decode(header: bytes) -> Member:
    (
        name,
        mode,
        uid,
        gid,
        size,
        mtime,
        checksum,
        kind,
        target,
        magic,
        _,
        _,
        _,
        major,
        minor,
        prefix,
    ) = _HEADER.unpack(header)
    total = sum(header) - sum(checksum) + 8 * ord(" ")
    if _number(checksum, "checksum") != total:
        raise TarError("a header's checksum is wrong")
    if not magic.startswith(b"ustar"):
        raise TarError("a header is not in the ustar format")
    if kind not in _KNOWN and kind != _PAX:
        raise TarError(f"a member is of the unknown type {kind!r}")
    kind = FILE if kind == b"\0" else kind
    path = (
        _text(prefix) + b"/" + _text(name) if _text(prefix) and magic[5:6] == b"\0" else _text(name)
    )
    return Member(
        path,
        kind,
        _number(mode, "mode") & 0o7777,
        _number(uid, "uid"),
        _number(gid, "gid"),
        _number(size, "size"),
        _number(mtime, "mtime") * 10**9,
        _text(target),
        (_number(major, "device"), _number(minor, "device")),
    )


def _text(field_: bytes) -> bytes:
    return field_.partition(b"\0")[0]


def _number(field_: bytes, what: str) -> int:
    digits = field_.strip(b" \0")
    if not digits:
        return 0
    if any(digit not in b"01234567" for digit in digits):
        raise TarError(f"a header's {what} is not a number")
    return int(digits, 8)


def _read_pax(archive: BinaryIO, member: Member) -> dict[bytes, bytes]:
    """Return the records of an extended header."""
    if member.size > MAX_PAX_BYTES:
        raise TarError(f"an extended header of {member.size} bytes is too large")
    data = read_exactly(archive, member.size)
    read_exactly(archive, -member.size % BLOCK)
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        digits, _, _ = data[at : at + 8].partition(b" ")
        if not digits.isdigit():
            raise TarError("a record of an extended header has no length")
        end_ = at + int(digits)
        key, equals, value = data[at + len(digits) + 1 : end_ - 1].partition(b"=")
        if end_ > len(data) or data[end_ - 1 : end_] != b"\n" or not equals or not key:
            raise TarError("a record of an extended header is malformed")
        if key in records:
            raise TarError(f"an extended header says {key!r} twice")
        records[key] = value
        at = end_
    return records


def _refine(member: Member, pax: dict[bytes, bytes]) -> Member:
    """Return *member* with what its extended header says."""
    xattrs = {
        key[len(_XATTR) :].decode("utf-8", "surrogateescape"): value
        for key, value in pax.items()
        if key.startswith(_XATTR)
    }
    mtime = pax.get(b"mtime")
    refined = dataclasses.replace(
        member,
        path=pax.get(b"path", member.path),
        target=pax.get(b"linkpath", member.target),
        uid=_pax_number(pax, b"uid", member.uid),
        gid=_pax_number(pax, b"gid", member.gid),
        size=_pax_number(pax, b"size", member.size),
        mtime_ns=member.mtime_ns if mtime is None else _nanoseconds(mtime),
        xattrs=xattrs,
        socket=_SOCKET in pax,
    )
    _check(refined)
    return refined


def _check(member: Member) -> None:
    if max(len(member.path), len(member.target)) > MAX_PATH_BYTES:
        raise TarError("a path is too long")
    if b"\0" in member.path or b"\0" in member.target:
        raise TarError("a path has a zero byte in it")
    if member.size and (member.kind != FILE or member.socket):
        raise TarError(f"{member.path!r} has contents, which its type cannot have")


def _pax_number(pax: dict[bytes, bytes], key: bytes, default: int) -> int:
    value = pax.get(key)
    if value is None:
        return default
    if not value.isdigit() or len(value) > 19:
        raise TarError(f"{key!r} in an extended header is not a number")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    """Read what `_decimal_seconds` writes, with any number of decimals."""
    sign = -1 if value.startswith(b"-") else 1
    seconds, _, decimals = value.lstrip(b"-").partition(b".")
    if not seconds.isdigit() or not (decimals + b"0").isdigit() or len(seconds) > 12:
        raise TarError("a time in an extended header is not a number")
    return sign * (int(seconds) * 10**9 + int(decimals[:9].ljust(9, b"0")))
