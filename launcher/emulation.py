"""What of an emulated call is carried out. Pure: the monitor reads the arguments, this decides.

mount(2) of tmpfs and proc, with options that bound them; umount2(2) of what was mounted so.
"""

import re
from typing import Final

import msgspec

from launcher.policy import MOUNT_FLAGS

# <errno.h>
EPERM: Final = 1
EINVAL: Final = 22

SIZE: Final = 256 << 20
INODES: Final = 65536
MOUNTS: Final = 64
"""Of one pod at a time: bytes and inodes of a tmpfs, and mounts."""

IDS: Final = 1 << 16
"""Of a user namespace: launcher.users.COUNT."""

SOURCE: Final = "(pod)"
"""What /proc/mounts shows as the source of such a mount. Nobody but the monitor can make one, so
it tells them from the mounts that the pod was made with: that of the root has the pod's name."""

# MOUNT_ATTR_* of <linux/mount.h>, by the names of MOUNT_FLAGS; relatime is the default
ATTRIBUTES: Final = {
    "ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "noatime": 0x10, "strictatime": 0x20,
    "nodiratime": 0x80,
}  # fmt: skip
_FORCED: Final = {"tmpfs": ("nosuid", "nodev"), "proc": ("nosuid", "nodev", "noexec")}

_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_AMOUNT: Final = re.compile(r"([0-9]{1,18})([kKmMgG]?)")
_MODE: Final = re.compile(r"0?[0-7]{1,4}")
_HIDEPID: Final = re.compile(r"[0-4]|off|noaccess|invisible|ptraceable")


class Mount(msgspec.Struct, tag=True, frozen=True):
    """Mount a new file system.

    Attributes:
        target: path as the caller gave it.
        fstype: "tmpfs" or "proc".
        options: parameters of it (fsconfig(2)).
        attributes: MOUNT_ATTR_* bits.
        again: it may have been done already, by a monitor that died before it could say so.
    """

    target: bytes
    fstype: str
    options: list[tuple[str, str]]
    attributes: int
    again: bool = False


class Unmount(msgspec.Struct, tag=True, frozen=True):
    """Detach what was mounted so; *again* as in Mount."""

    target: bytes
    follow: bool
    again: bool = False


Request = Mount | Unmount


def is_mountable(fstype: bytes) -> bool:
    """May a pod mount file systems of this type?"""
    return fstype.decode("latin-1") in _FORCED


def of_mount(
    target: bytes, fstype: bytes, flags: int, options: bytes, base: int = 0
) -> Mount | int:
    """Return the request that a call of mount(2) comes to, or the errno it fails with.

    Args:
        target: path.
        fstype: type as in /proc/filesystems.
        flags: MS_* bits; the filter has let only those of MOUNT_FLAGS through.
        options: separated by commas.
        base: what the pod's user 0 is on the host.
    """
    kind = fstype.decode("latin-1")
    if kind not in _FORCED:
        return EPERM
    try:
        chosen = dict(_option(kind, text) for text in options.decode("ascii").split(",") if text)
    except ValueError:
        return EINVAL
    if kind == "tmpfs":
        chosen = {"size": str(SIZE), "nr_inodes": str(INODES)} | chosen
        if base and not _shift(chosen, base):
            return EINVAL
    else:
        chosen["subset"] = "pid"
    wanted = {*_FORCED[kind], *(name for name, bit in MOUNT_FLAGS.items() if flags & bit)}
    if {"noatime", "strictatime"} <= wanted:
        return EINVAL
    attributes = sum(ATTRIBUTES.get(name, 0) for name in wanted)
    return Mount(target, kind, [("source", SOURCE), *chosen.items()], attributes)


def _shift(chosen: dict[str, str], base: int) -> bool:
    """Let the owner of a tmpfs be the host's id for one of the pod's; False if it has no such."""
    for key in ("uid", "gid"):
        number = int(chosen.get(key, "0"))
        if number >= IDS:
            return False
        chosen[key] = str(base + number)
    return True


def _option(kind: str, text: str) -> tuple[str, str]:
    """Return an option, within its bounds.

    Raises:
        ValueError: a pod may not give it.
    """
    key, _, value = text.partition("=")
    match kind, key:
        case "tmpfs", "size":
            return key, str(min(SIZE, SIZE if value.endswith("%") else _amount(value)) or SIZE)
        case "tmpfs", "nr_inodes":
            return key, str(min(INODES, _amount(value)) or INODES)
        case "tmpfs", "mode":
            return key, _matching(_MODE, value)
        case "tmpfs", ("uid" | "gid"):
            return key, _matching(_NUMBER, value)
        case "proc", "hidepid":
            return key, _matching(_HIDEPID, value)
        case "proc", "subset" if value == "pid":
            return key, value
    raise ValueError(text)


def _amount(text: str) -> int:
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return int(found[1]) << 10 * " kmg".index(found[2].lower() or " ")


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(text)
    return text
