"""What is mounted, and who uses it, as /proc tells; no mounted file system is touched."""

import errno
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stackfs import abi

log = logging.getLogger(__name__)

_ESCAPE = re.compile(r"\\([0-7]{3})")
FSTYPE = "fuse.stackfs"


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/PID/mountinfo.

    Attributes:
        id: of the mount.
        parent: id of the mount that it is on.
        device: "major:minor" of the file system.
        point: mount point.
        fstype: file system type.
        propagates: whether an unmount elsewhere reaches it or comes from it.

    Source: proc(5), "/proc/pid/mountinfo".
    """

    id: int
    parent: int
    device: str
    point: str
    fstype: str
    propagates: bool


def mounts(pid: int | str = "self") -> list[Mount]:
    """Return the mounts that a process sees, in the order of mounting."""
    text = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
    return [parse(line) for line in text.splitlines()]


def parse(line: str) -> Mount:
    """Read one line of mountinfo."""
    before, _, after = line.partition(" - ")
    number, parent, device, _, point, _, *optional = before.split(" ")
    point = _ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), point)
    propagates = any(tag.startswith(("shared:", "master:")) for tag in optional)
    return Mount(int(number), int(parent), device, point, after.split(" ")[0], propagates)


def stack_at(point: Path) -> Mount | None:
    """Return the stack that is mounted at *point*, or None; one that something covers counts."""
    found = [m for m in mounts() if m.point == os.fspath(point) and m.fstype == FSTYPE]
    return found[-1] if found else None


def below(mount: Mount) -> list[str]:
    """Return the mount points of what is mounted on *mount* itself."""
    return [m.point for m in mounts() if m.parent == mount.id]


def users(mount: Mount, own: set[int]) -> list[tuple[int, str]]:
    """Return pid and name of the processes, but for its *own*, that keep *mount* busy.

    Those with a root, a working directory, a program or an open file in it, and those that have
    it in a mount namespace of their own, which an unmount here does not reach.
    """
    here = os.readlink("/proc/self/ns/mnt")
    found = []
    holds: dict[str, bool] = {here: False}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid in own or pid == os.getpid():
            continue
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in holds:
                holds[namespace] = _holds(pid, mount)
            if holds[namespace] or (namespace == here and _uses(pid, mount.point)):
                found.append((pid, Path(f"/proc/{pid}/comm").read_text().strip()))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        except OSError as e:
            if e.errno != errno.EINVAL:  # a process that is ending (mounts_open_common(), v6.18)
                raise
    return sorted(found)


def _holds(pid: int, mount: Mount) -> bool:
    return any(m.device == mount.device and not m.propagates for m in mounts(pid))


def _uses(pid: int, point: str) -> bool:
    inside = point + "/"
    return any(link == point or link.startswith(inside) for link in _links(pid))


def _links(pid: int) -> Iterator[str]:
    for name in ("cwd", "root", "exe"):
        yield _link(f"/proc/{pid}/{name}")
    for fd in os.listdir(f"/proc/{pid}/fd"):
        yield _link(f"/proc/{pid}/fd/{fd}")


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # a kernel thread, or closed meanwhile
        return ""


def tune(mount: Mount) -> None:
    """Let the kernel read ahead further and keep more requests under way than FUSE's defaults.

    Source: Documentation/filesystems/fuse.rst, "Control filesystem";
    Documentation/ABI/testing/sysfs-class-bdi.
    """
    minor = mount.device.partition(":")[2]
    settings = {
        f"/sys/class/bdi/{mount.device}/read_ahead_kb": "1024",
        f"/sys/fs/fuse/connections/{minor}/max_background": "64",
        f"/sys/fs/fuse/connections/{minor}/congestion_threshold": "48",
    }
    try:
        for path, value in settings.items():
            if os.path.exists(path):
                Path(path).write_text(value)
    except OSError as e:  # in a container sysfs is read-only
        log.info("going on with the kernel's own settings: %s", e)


def drop_unused(point: Path) -> None:
    """Have the kernel give up every inode of the file system at *point* that nothing uses.

    A change of its parameters, of which there is none, drops its unused directory entries and
    with them the inodes: for FUSE, it forgets them. Dirty pages are written out first; whoever
    serves the file system calls this in a thread.

    Source: fs/super.c, reconfigure_super(); fs/fuse/inode.c, fuse_reconfigure(), v6.12.
    """
    fd = abi.fspick(-1, os.fsencode(point), abi.FSPICK_CLOEXEC)
    try:
        abi.fsconfig(fd, abi.FSCONFIG_CMD_RECONFIGURE)
    finally:
        os.close(fd)
