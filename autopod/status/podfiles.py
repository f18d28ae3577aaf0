"""Files in a pod's root, read from outside. The pod may be hostile, and changes them meanwhile."""

import os
import stat
from typing import Final

from launcher import abi
from launcher.places import Places

_MOST: Final = 64 << 20
_WITHIN: Final = abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS | abi.RESOLVE_NO_XDEV


class Unreadable(Exception):  # noqa: N818 (what is the case)
    """A file of a pod cannot be had; the text says why."""


def read(places: Places, pod: str, path: str) -> str:
    """Return the file *path*, relative to the root of *pod*, as its programs see it.

    The walk begins at a descriptor of the root and stays beneath it, in the pod's file system; no
    symbolic link is followed, and nothing but a regular file is opened: openat2(2).

    Raises:
        Unreadable: it is not there, or is not a file of a sensible size.
    """
    try:
        root_fd = os.open(places.root(pod), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise Unreadable(f"its root cannot be opened: {e.strerror}") from e
    try:
        return _read(root_fd, path)
    finally:
        os.close(root_fd)


def _read(root_fd: int, path: str) -> str:
    try:
        # Looked at before it is opened: opening a device does things, and a fifo waits.
        seen_fd = abi.openat2(root_fd, path, os.O_PATH, _WITHIN)
    except OSError as e:
        raise Unreadable(f"/{path}: {e.strerror}") from e
    try:
        if not stat.S_ISREG(os.fstat(seen_fd).st_mode):
            raise Unreadable(f"/{path}: not a regular file")
        with open(f"/proc/self/fd/{seen_fd}", "rb") as stream:
            data = stream.read(_MOST + 1)
    except OSError as e:
        raise Unreadable(f"/{path}: {e.strerror}") from e
    finally:
        os.close(seen_fd)
    if len(data) > _MOST:
        raise Unreadable(f"/{path}: more than {_MOST >> 20} MiB")
    return data.decode(errors="replace")
