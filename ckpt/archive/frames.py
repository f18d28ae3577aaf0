"""Framed blobs: content cut into pieces of 4 MiB, each a zstd frame of its own. Pure.

The concatenation of the frames is an ordinary zstd stream (RFC 8878, 3), so other tools read the
blob as a whole. The table of its frames, in the index blob, lets us read any piece alone, and check
each by its own digest *before* it is decompressed, from the very bytes that were hashed.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator
from typing import Final

import zstandard
from msgspec import Struct

from ckpt.archive.errors import Damaged, FormatError

FRAME_CONTENT: Final = 4 << 20
"""Bytes of content in every frame of a blob but the last."""

MAX_FRAME: Final = FRAME_CONTENT + FRAME_CONTENT // 128
"""Bytes of a frame; zstd adds less than 1/256 and some bytes (ZSTD_COMPRESSBOUND, zstd.h)."""

_LEVEL: Final = 1
_ENTRY: Final = struct.Struct(
    "<"
    "I"  # bytes of the frame in the blob
    "32s"  # SHA-256 of these bytes
)


class Frame(Struct, frozen=True):
    """One frame: where it is in its blob, its digest, and the bytes that come out of it."""

    offset: int
    size: int
    sha256: bytes
    length: int


def compress(
    content: bytes | bytearray | memoryview, seal: Callable[[bytes], bytes] = bytes
) -> tuple[bytes, bytes]:
    """Return a frame of *content*, as *seal* encrypts it, and its table entry. Releases the GIL."""
    frame = seal(zstandard.ZstdCompressor(level=_LEVEL).compress(content))
    return frame, _ENTRY.pack(len(frame), hashlib.sha256(frame).digest())


def check(frame: Frame, data: bytes) -> None:
    """Compare *data*, the bytes of *frame*, with its digest. Releases the GIL.

    Raises:
        Damaged: they do not have it.
    """
    if hashlib.sha256(data).digest() != frame.sha256:
        raise Damaged("a frame does not have the digest that the signed index gives")


def decompress(frame: Frame, data: bytes, unseal: Callable[[bytes], bytes] = bytes) -> bytes:
    """Return the content of *frame*, whose bytes are *data*. Releases the GIL.

    Args:
        frame: what the index says of it.
        data: its bytes.
        unseal: decrypts it.

    Raises:
        Damaged: *data* does not have the digest that the table gives; it is not looked at.
        FormatError: it has, but is not a frame of as much content as the table says.
    """
    check(frame, data)
    data = unseal(data)
    try:
        announced = zstandard.frame_content_size(data)
        if announced != frame.length:
            raise FormatError(f"a frame announces {announced} bytes, not {frame.length}")
        content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise FormatError(f"a frame cannot be decompressed: {e}") from e
    return content


def table(length: int, blob_size: int, packed: bytes) -> list[Frame]:
    """Return the frames of a blob of *blob_size* bytes with *length* bytes of content.

    Raises:
        FormatError: table, length and size contradict one another.
    """
    count = -(-length // FRAME_CONTENT)
    if length < 0 or len(packed) != count * _ENTRY.size:
        raise FormatError(f"a table of {len(packed)} bytes cannot describe {length} bytes")
    frames = list(_frames(length, packed))
    end = frames[-1].offset + frames[-1].size if frames else 0
    if end != blob_size:
        raise FormatError(f"the frames of a blob have {end} bytes, the blob {blob_size}")
    return frames


def _frames(length: int, packed: bytes) -> Iterator[Frame]:
    offset = 0
    for size, sha256 in _ENTRY.iter_unpack(packed):
        if not 0 < size <= MAX_FRAME:
            raise FormatError(f"a frame of {size} bytes")
        yield Frame(offset, size, sha256, min(FRAME_CONTENT, length))
        offset += size
        length -= FRAME_CONTENT
