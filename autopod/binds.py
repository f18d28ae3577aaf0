"""Where a directory that was bind-mounted comes from.

An administrator puts a pod's base at `/autopod/POD/root` with `mount -o bind /pod …`. The stack is
then mounted over it, and after a reboot the bind mount is gone: so the directory's own name is
looked up, and proved by device and inode number, while the bind mount can still be seen.
"""

import errno
import os
import re
from pathlib import Path

from msgspec import Struct


class BindError(Exception):
    """What is mounted has no name of its own that a later mount could use."""


class Mount(Struct, frozen=True):
    """A line of /proc/PID/mountinfo.

    Attributes:
        id: the kernel's number of the mount.
        device: MAJOR:MINOR of the file system.
        root: the directory of the file system that is mounted.
        point: where it is mounted, below the reader's root directory.

    Source: proc(5), /proc/[pid]/mountinfo.
    """

    id: int
    device: str
    root: str
    point: str


def parse(mountinfo: str) -> list[Mount]:
    """Return the mounts that *mountinfo* lists, in its order."""
    rows = (line.split(" ") for line in mountinfo.splitlines())
    return [Mount(int(row[0]), row[2], _unescape(row[3]), _unescape(row[4])) for row in rows]


def _unescape(field: str) -> str:
    r"""Undo the \ooo of fs/proc_namespace.c, show_mountinfo(): space, tab, newline, backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def names(bound: Mount, mounts: list[Mount]) -> list[str]:
    """Return the names under which other mounts may show what *bound* shows, shortest first."""
    found = [
        os.path.normpath(os.path.join(mount.point, os.path.relpath(bound.root, mount.root)))
        for mount in mounts
        if mount.device == bound.device
        and mount.id != bound.id
        and _is_below(bound.root, mount.root)
        and not _is_below(mount.point, os.path.dirname(bound.point))
    ]
    return sorted(found, key=lambda name: (len(name), name))


def _is_below(path: str, directory: str) -> bool:
    return os.path.commonpath([path, directory]) == directory


def source(point: Path) -> Path | None:
    """Return the directory that is bind-mounted at *point*; None if nothing is mounted there.

    Raises:
        BindError: something is mounted there that cannot be reached by another name.
    """
    try:
        fd = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        # ENOTCONN: the stack of a stackfs daemon that was killed; mounting clears it away.
        if e.errno in (errno.ENOENT, errno.ENOTCONN):
            return None
        raise
    try:
        return _source(fd, point)
    finally:
        os.close(fd)


def _source(fd: int, point: Path) -> Path | None:
    mounts = parse(Path("/proc/self/mountinfo").read_text())
    [bound] = [mount for mount in mounts if mount.id == _mount_id(fd)]
    if bound.point != os.path.realpath(point):
        return None
    for name in names(bound, mounts):
        if _is_same(fd, name):
            return Path(name)
    raise BindError(f"what is mounted at {point} is mounted nowhere else, so it has no other name")


def _mount_id(fd: int) -> int:
    """The mount that *fd* was opened on (proc(5), /proc/[pid]/fdinfo: mnt_id)."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(re.findall(r"^mnt_id:\s*(\d+)$", text, re.MULTILINE)[0])


def _is_same(fd: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name))
    except OSError:
        return False  # covered by another mount, or gone
