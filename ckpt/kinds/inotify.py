"""Watched files: inotify(7).

The kernel names a watched inode by file handle; the handle leads to a path, or to a file that has
none any more, but that somebody has open. Watches are set when
nothing more is opened or closed in the workshop, under the numbers that they had.
"""

import array
import fcntl
import os
import re
import termios
from typing import Final

import msgspec

from ckpt.kinds import abi, flags, location
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_WATCH: Final = re.compile(
    r"^inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+) "
    r"ignored_mask:[0-9a-f]+ (?:fhandle-bytes:[0-9a-f]+ fhandle-type:([0-9a-f]+) "
    r"f_handle:([0-9a-f]+))?",
    re.MULTILINE,
)
# <linux/inotify.h>
_EVENTS: Final = {
    "access": 0x1,
    "modify": 0x2,
    "attrib": 0x4,
    "close_write": 0x8,
    "close_nowrite": 0x10,
    "open": 0x20,
    "moved_from": 0x40,
    "moved_to": 0x80,
    "create": 0x100,
    "delete": 0x200,
    "delete_self": 0x400,
    "move_self": 0x800,
    "excl_unlink": 0x4000000,
    "oneshot": 0x80000000,
}
_UNMOUNT_AND_SUCH: Final = 0x2000 | 0x4000 | 0x8000  # reported always, never asked for
_MINOR_BITS: Final = 20  # <linux/kdev_t.h>: how the kernel itself writes a device number


class Watch(msgspec.Struct, frozen=True):
    """A watch.

    Attributes:
        number: its own.
        path: what is watched; None if it has no name any more.
        events: for which events, without the prefix, lower case.
        file: an open file of what is watched, if it has no name.
    """

    number: int
    path: bytes | None
    events: list[str]
    file: int | None = None


class State(msgspec.Struct, frozen=True):
    """The watches, by ascending number."""

    watches: list[Watch]


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return source.link == "anon_inode:inotify"


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    unread = array.array("i", [0])
    fcntl.ioctl(source.local_fd, termios.FIONREAD, unread)
    if unread[0] and not dump.looking_only:
        # They can be read only once, and nothing can put them back.
        dump.refuse(source, "events wait in it that were not read", "try again in a moment")
        return None
    watches = []
    for match in _WATCH.finditer(source.fdinfo):
        number, found = int(match[1], 16), _find(match, dump)
        if found is None:
            dump.refuse(source, f"watch {number} is on a file without a known name")
            return None
        path, file = found
        events = flags.bit_names(int(match[4], 16) & ~_UNMOUNT_AND_SUCH, _EVENTS)
        watches.append(Watch(number, path, events, file))
    return State(sorted(watches, key=lambda watch: watch.number))


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    fd = abi.inotify_init()
    os.set_blocking(fd, not flags.open_flags(file.flags) & os.O_NONBLOCK)
    return fd


def complete(state: State, fd: int, workshop: Workshop) -> None:
    """See protocol.Completing."""
    for watch in state.watches:
        target = _open(watch, workshop)
        try:
            os.fchdir(workshop.host_proc_fd)
            # Takes the number itself, not its address (fs/notify/inotify/inotify_user.c).
            fcntl.ioctl(fd, abi.INOTIFY_IOC_SETNEXTWD, watch.number)
            here = f"self/fd/{target}".encode()
            number = abi.inotify_add_watch(fd, here, flags.bits(watch.events, _EVENTS))
        finally:
            os.chdir("/")
            os.close(target)
        if number != watch.number:
            raise ValueError(f"watch {watch.number} on {watch.path!r} became number {number}")


def _open(watch: Watch, workshop: Workshop) -> int:
    """Return a descriptor of what is watched."""
    if watch.path is not None:
        return location.open_in_pod(None, watch.path, os.O_PATH | os.O_NOFOLLOW)
    if watch.file is None:
        raise ValueError(f"watch {watch.number} is on nothing")
    return os.dup(workshop.file(watch.file))


def _find(match: re.Match[str], dump: Dump) -> tuple[bytes | None, int | None] | None:
    """Return where the watched inode is, or an open file of it; None if it cannot be told."""
    if match[6] is None:
        return None
    inode, device = int(match[2], 16), int(match[3], 16)
    number = os.makedev(device >> _MINOR_BITS, device & ((1 << _MINOR_BITS) - 1))
    for mount in dump.mounts().values():
        if mount.device != number:
            continue
        found = _by_handle(mount.point, int(match[5], 16), bytes.fromhex(match[6]), inode, dump)
        if found is not None:
            return found
    return None


def _by_handle(
    point: bytes, kind: int, handle: bytes, inode: int, dump: Dump
) -> tuple[bytes | None, int | None] | None:
    try:
        mode = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # it may be a device, bound there
        mount_fd = location.open_in_pod(dump.pod_root_fd, point, mode)
    except OSError:
        return None
    try:
        fd = abi.open_by_handle_at(mount_fd, kind, handle, os.O_PATH)
    except OSError:
        return None
    finally:
        os.close(mount_fd)
    try:
        stat, link = os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    if stat.st_ino != inode:
        return None
    path = location.locate(os.fsencode(link), stat, dump)
    if path is not None:
        return path, None
    same = (source.id for source in dump.sources() if os.path.samestat(source.stat, stat))
    file = next(same, None)
    return (None, file) if file is not None else None
