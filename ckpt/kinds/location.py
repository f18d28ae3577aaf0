"""By which name a file of the pod can be found again.

The link of /proc/PID/fd/FD follows renames and is seen from the root of the mount namespace, which
is the pod's root (fs/d_path.c). It is still only text: a name counts if it leads, beneath the
pod's root and through no symbolic link, to the very inode.
"""

import os
from typing import Final

from ckpt.kinds import abi, procinfo
from ckpt.kinds.protocol import Dump, Source

_DELETED: Final = b" (deleted)"
_SEARCH_LIMIT: Final = 20_000


def is_inside(source: Source, dump: Dump) -> bool:
    """Is *source* on a mount of the pod's mount namespace?"""
    return procinfo.parse_fdinfo(source.fdinfo.encode()).mount in dump.mounts()


def locate(link: bytes, stat: os.stat_result, dump: Dump) -> bytes | None:
    """Return an absolute path in the pod that leads to the inode of *stat*; None if none is known.

    A file whose name was removed may have other names: they are looked for near by.
    """
    candidates = [link]
    if link.endswith(_DELETED):
        candidates.append(link.removesuffix(_DELETED))
    for path in candidates:
        if leads_to(path, stat, dump.pod_root_fd):
            return path
    if stat.st_nlink == 0:
        return None
    return _search(os.path.dirname(os.path.dirname(link)) or b"/", stat, dump.pod_root_fd)


def leads_to(path: bytes, stat: os.stat_result, root_fd: int) -> bool:
    """Does *path*, from *root_fd*, lead to the inode of *stat* without a symbolic link?"""
    if not path.startswith(b"/"):
        return False
    try:
        fd = open_in_pod(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.path.samestat(os.fstat(fd), stat)
    finally:
        os.close(fd)


def removed_name(link: bytes) -> bytes:
    """Return the name that a file without one had last."""
    return link.removesuffix(_DELETED)


def open_in_pod(root_fd: int | None, path: bytes, flags: int) -> int:
    """Open an existing file by an absolute path as locate() gives it.

    Args:
        root_fd: the pod's root; None in the workshop, whose own root is the pod's.
        path: absolute, without symbolic links.
        flags: as open(2).
    """
    resolve = abi.RESOLVE_NO_SYMLINKS | abi.RESOLVE_NO_MAGICLINKS
    if root_fd is None:
        return abi.openat2(abi.AT_FDCWD, path, flags, resolve)
    return abi.openat2(root_fd, path, flags, resolve | abi.RESOLVE_IN_ROOT)


def _search(top: bytes, stat: os.stat_result, root_fd: int) -> bytes | None:
    """Look through some thousand names below *top* for the inode.

    link(2) followed by unlink(2) is how a file is moved without overwriting (maildir: tmp/ to
    new/), so the other name is usually in the same directory or in one beside it.
    """
    pending, seen = [top], 0
    while pending and seen <= _SEARCH_LIMIT:
        directory = pending.pop(0)
        try:
            fd = open_in_pod(root_fd, directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    seen += 1
                    path = os.path.join(directory, os.fsencode(entry.name))
                    if entry.inode() == stat.st_ino and leads_to(path, stat, root_fd):
                        return path
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
        finally:
            os.close(fd)
    return None
