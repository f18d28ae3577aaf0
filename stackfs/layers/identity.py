"""The identity of a layer: a SHA-256 over what is in it, not where it is or when it was made.

The listing that is hashed has a record for each file, in the order of their paths: path, type,
mode, owner, size, device number, hard-link group, and a digest of contents, link target and
extended attributes. A digest is kept in a cache under the file's device, inode number, size and
times of change: whatever alters a file alters its ctime (inode(7)). Times and inode numbers are
not part of the identity, nor are the layers' own extended attributes.

This module imports neither trio nor, for a directory, ctypes: it must start at once.
"""

import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

from stackfs.layers import whiteout
from stackfs.layers.walk import Found, walk
from stackfs.places import Places

_KEY = struct.Struct("<QQQqq")  # device, inode, size, mtime_ns, ctime_ns
_RECORD_BYTES = _KEY.size + 32
_SETTLED_NS = 50_000_000
"""A file changed less than this ago may change again within one tick of the clock that stamps
it (4 to 10 ms), and keep its times: its digest is not kept."""


def identity(path: str) -> str:
    """Return the identity of a layer, a directory or an image: 64 hexadecimal digits.

    Raises:
        OSError: something in it cannot be read.
    """
    status = os.stat(path)
    image = status if stat.S_ISREG(status.st_mode) else None
    if image is None:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        from stackfs.layers.image import mount_image

        fd = mount_image(path)
    try:
        return identity_of(fd, image)
    finally:
        os.close(fd)


def identity_of(fd: int, image: os.stat_result | None) -> str:
    """Return the identity of a layer.

    Args:
        fd: a descriptor of its root directory.
        image: status of the file that is mounted there, None for a plain directory.
    """
    if image is None:
        cache = _Cache.of(os.stat(b".", dir_fd=fd))
        total = _total(fd, lambda found: cache.digest(found.status, lambda: _digest(found)))
    else:  # its files' numbers and times may be another image's, too
        cache = _Cache.of(image)
        total = cache.digest(image, lambda: _total(fd, _digest))
    cache.save()
    return total.hex()


def _total(fd: int, digest: Callable[[Found], bytes]) -> bytes:
    total = hashlib.sha256(b"stackfs layer 1\0")
    groups: dict[tuple[int, int], int] = {}
    for found in walk(fd):
        total.update(_record(found, digest(found), groups))
    return total.digest()


def _record(found: Found, digest: bytes, groups: dict[tuple[int, int], int]) -> bytes:
    """Return the canonical record of one file."""
    path, status = found.path, found.status
    mode = status.st_mode
    is_directory = stat.S_ISDIR(mode)
    size = 0 if is_directory else status.st_size
    group = 0
    if not is_directory and status.st_nlink > 1:
        group = groups.setdefault((status.st_dev, status.st_ino), len(groups) + 1)
    numbers = struct.pack(
        "<IQQQQQ", mode, status.st_uid, status.st_gid, size, status.st_rdev, group
    )
    return struct.pack("<I", len(path)) + path + numbers + digest


class _Cache:
    """Digests of files by what changes with their contents.

    A file of fixed records, one for each layer directory; replaced as a whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._old: dict[bytes, bytes] = {}
        self._new: dict[bytes, bytes] = {}
        self._settled_ns = time.time_ns() - _SETTLED_NS
        data = path.read_bytes() if path.exists() else b""
        for at in range(0, len(data) - _RECORD_BYTES + 1, _RECORD_BYTES):
            middle = at + _KEY.size
            self._old[data[at:middle]] = data[middle : at + _RECORD_BYTES]

    @classmethod
    def of(cls, root: os.stat_result) -> "_Cache":
        """Return the cache for the layer with this root directory, or in this file."""
        directory = Places.from_environment().prefix / "var/cache/autopod/identity"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(directory / f"{root.st_dev:x}-{root.st_ino:x}")

    def digest(self, status: os.stat_result, make: Callable[[], bytes]) -> bytes:
        """Return what is known of a file, or else make it and keep it."""
        key = _KEY.pack(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )
        digest = self._old.get(key) or make()
        if max(status.st_ctime_ns, status.st_mtime_ns) < self._settled_ns:
            self._new[key] = digest
        return digest

    def save(self) -> None:
        """Write the digests that were asked for, if they are not all there already."""
        if self._new == self._old:
            return
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}.{time.monotonic_ns()}")
        new.write_bytes(b"".join(key + digest for key, digest in self._new.items()))
        new.replace(self._path)


def _digest(found: Found) -> bytes:
    """Return the digest of contents, link target and extended attributes of a file."""
    digest = hashlib.sha256()
    if stat.S_ISREG(found.status.st_mode):
        with os.fdopen(found.open(), "rb", buffering=0) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    elif stat.S_ISLNK(found.status.st_mode):
        digest.update(os.readlink(found.name, dir_fd=found.dir_fd))
    for key in sorted(whiteout.attribute_names(found.proc_path)):
        if key in whiteout.SHOWING or not whiteout.is_private(key):
            value = os.getxattr(found.proc_path, key, follow_symlinks=False)
            digest.update(struct.pack("<I", len(key)) + os.fsencode(key))
            digest.update(struct.pack("<I", len(value)) + value)
    return digest.digest()
