"""Takes the steps of a plan.

Runs in processes that are about to become part of a pod: nothing here may import lazily, as the
import path would be looked up in the pod's root.

Whatever lies below the root is reached from a descriptor of the root, with openat2(2) and
RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS; a new file system is filled while
it is still detached, attached by descriptor, and what is in it is reached from its own descriptor.
So no path is walked twice, and neither a hostile root tree nor one that changes meanwhile can lead
a mount elsewhere.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from launcher import abi, userns
from launcher.enter import join_control_groups
from launcher.errors import StepFailed
from launcher.plan import (
    BindReadOnly,
    Device,
    Directory,
    Entry,
    FileSystem,
    JoinControlGroups,
    JoinNetwork,
    JoinUsers,
    Mask,
    NewNamespaces,
    Pivot,
    ReadOnly,
    SetClocks,
    SetHostName,
    Step,
    Symlink,
    TakeRoot,
)

_NAMESPACES: Final = {
    "uts": abi.CLONE_NEWUTS,
    "ipc": abi.CLONE_NEWIPC,
    "mnt": abi.CLONE_NEWNS,
    "time": abi.CLONE_NEWTIME,
    "pid": abi.CLONE_NEWPID,
    "net": abi.CLONE_NEWNET,
    "cgroup": abi.CLONE_NEWCGROUP,
}
_ATTRIBUTES: Final = {
    "ro": abi.MOUNT_ATTR_RDONLY,
    "nosuid": abi.MOUNT_ATTR_NOSUID,
    "nodev": abi.MOUNT_ATTR_NODEV,
    "noexec": abi.MOUNT_ATTR_NOEXEC,
}
_RESTRICTED: Final = (
    abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV | abi.MOUNT_ATTR_NOEXEC
)
_BELOW_ROOT: Final = abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_SYMLINKS | abi.RESOLVE_NO_MAGICLINKS


class Executor:
    """The state that steps share: the root, once it is taken.

    Args:
        cgroup_fds: open `cgroup.procs` of the pod's control groups, opened outside of the pod.
    """

    def __init__(self, cgroup_fds: Sequence[int]) -> None:
        self._cgroup_fds = cgroup_fds
        self._root_fd = self._network_fd = -1
        self._mounted: dict[str, int] = {}  # target -> descriptor of what we have mounted there

    def run(self, steps: Iterable[Step]) -> None:
        """Take *steps* in order. The umask must be 0.

        Raises:
            StepFailed: one of them failed.
        """
        for step in steps:
            try:
                self._take(step)
            except OSError as e:
                where = f" ({os.fsdecode(e.filename)})" if e.filename else ""
                raise StepFailed(f"{step.describe()}: {e.strerror}{where}") from e

    def _take(self, step: Step) -> None:  # noqa: C901, PLR0912 (one case for each kind of step)
        match step:
            case JoinNetwork(path):
                self._network_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                abi.setns(self._network_fd, abi.CLONE_NEWNET)
            case NewNamespaces(names):
                abi.unshare(sum(_NAMESPACES[name] for name in names))
            case SetHostName(name):
                abi.sethostname(name)
            case SetClocks(monotonic_ns, boottime_ns):
                _set_clocks(monotonic_ns, boottime_ns)
            case JoinUsers():
                abi.setns(fcntl.ioctl(self._network_fd, abi.NS_GET_USERNS), abi.CLONE_NEWUSER)
                userns.become_root()
            case TakeRoot(path):
                self._root_fd = _take_root(path)
            case Pivot():
                _pivot(self._root_fd)
            case FileSystem():
                self._mount(step)
            case BindReadOnly(source, target):
                self._bind(source, target)
            case ReadOnly(target):
                self._if_there(target, _make_read_only)
            case Mask(target):
                self._if_there(target, self._mask)
            case JoinControlGroups():
                join_control_groups(self._cgroup_fds)

    def _open(self, path: str, flags: int = 0) -> int:
        """Return an O_PATH descriptor of *path* below the root."""
        base_fd, rest = self._base(path)
        return abi.openat2(base_fd, rest, os.O_PATH | flags, _BELOW_ROOT)

    def _base(self, path: str) -> tuple[int, str]:
        """Return the file system of ours that *path* is in, or the root, and the rest of the path.

        Somebody who can write to the root can move the directory on which it is mounted.
        """
        above = max((t for t in self._mounted if path.startswith(f"{t}/")), key=len, default="")
        return self._mounted.get(above, self._root_fd), path[len(above) :].lstrip("/")

    def _mount_point(self, path: str) -> int:
        """Return an O_PATH descriptor of directory *path*, which is made if it is missing."""
        try:
            return self._open(path, os.O_DIRECTORY)
        except FileNotFoundError:
            base_fd, rest = self._base(path)
            os.mkdir(rest, 0o755, dir_fd=base_fd)
            return self._open(path, os.O_DIRECTORY)

    def _mount(self, step: FileSystem) -> None:
        attributes = sum(_ATTRIBUTES[name] for name in step.attributes)
        mount_fd = new_file_system(step, attributes & ~abi.MOUNT_ATTR_RDONLY)
        for entry in step.entries:
            _make_entry(entry, mount_fd)
        if step.owner:
            made = ("ptmx",) if step.fstype == "devpts" else ()
            for name in (".", *made, *(entry.name for entry in step.entries)):
                os.chown(name, step.owner, step.owner, dir_fd=mount_fd, follow_symlinks=False)
        if attributes & abi.MOUNT_ATTR_RDONLY:
            _set_attributes(mount_fd, abi.MOUNT_ATTR_RDONLY)
        target_fd = self._mount_point(step.target)
        self._mounted[step.target] = os.dup(mount_fd)
        _attach(mount_fd, target_fd)

    def _bind(self, source: str, target: str) -> None:
        if not os.path.exists(source):
            return
        kind = os.O_DIRECTORY if os.path.isdir(source) else 0
        mount_fd = abi.open_tree(abi.AT_FDCWD, source, abi.OPEN_TREE_CLONE)
        _set_attributes(mount_fd, _RESTRICTED)
        _attach(mount_fd, self._open(target, kind))

    def _if_there(self, target: str, do: Callable[[int], None]) -> None:
        try:
            fd = self._open(target)
        except FileNotFoundError:
            return
        do(fd)

    def _mask(self, target_fd: int) -> None:
        if stat.S_ISDIR(os.fstat(target_fd).st_mode):
            empty = FileSystem("tmpfs", "", (("size", "4k"), ("mode", "0555")))
            mount_fd = new_file_system(empty, _RESTRICTED)
        else:
            null_fd = self._open("/dev/null")
            if os.fstat(null_fd).st_rdev != os.makedev(1, 3):
                raise OSError(0, "is not the null device", "/dev/null")
            mount_fd = abi.open_tree(null_fd, "", abi.OPEN_TREE_CLONE | abi.AT_EMPTY_PATH)
            _set_attributes(mount_fd, _RESTRICTED & ~abi.MOUNT_ATTR_NODEV)
            os.close(null_fd)
        _attach(mount_fd, target_fd)


def _set_clocks(monotonic_ns: int, boottime_ns: int) -> None:
    """Set the offsets of the time namespace that the next child will be the first in.

    Source: time_namespaces(7).
    """
    offsets = {"monotonic": monotonic_ns, "boottime": boottime_ns}
    text = "".join(f"{c} {ns // 10**9} {ns % 10**9}\n" for c, ns in offsets.items())
    with open("/proc/self/timens_offsets", "w") as file:
        file.write(text)


def _take_root(path: str) -> int:
    """Return a descriptor of a new mount of directory *path*, attached at *path* itself.

    First nothing may propagate any more: neither may our mounts appear elsewhere, nor the
    host's new mounts here. A device node that lies in the tree opens no device.
    """
    abi.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    mount_fd = abi.open_tree(abi.AT_FDCWD, path, abi.OPEN_TREE_CLONE)
    _set_attributes(mount_fd, abi.MOUNT_ATTR_NODEV)
    target_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    abi.move_mount(mount_fd, target_fd)
    os.close(target_fd)
    return mount_fd


def _pivot(root_fd: int) -> None:
    """Leave the old root.

    pivot_root(2), "pivot_root(".", ".")": the old root is stacked upon the new one, where
    umount2(2) of "." finds it.
    """
    os.fchdir(root_fd)
    abi.pivot_root(".", ".")
    abi.umount2(".", abi.MNT_DETACH)
    os.chdir("/")


def new_file_system(step: FileSystem, attributes: int) -> int:
    """Return a descriptor of a new, detached mount."""
    context_fd = abi.fsopen(step.fstype)
    try:
        for key, value in step.options:
            abi.fsconfig(context_fd, abi.FSCONFIG_SET_STRING, key, value)
        abi.fsconfig(context_fd, abi.FSCONFIG_CMD_CREATE)
        return abi.fsmount(context_fd, attributes)
    finally:
        os.close(context_fd)


def _make_entry(entry: Entry, dir_fd: int) -> None:
    match entry:
        case Directory(name, mode):
            os.mkdir(name, mode, dir_fd=dir_fd)
        case Device(name, major, minor):
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dir_fd)
        case Symlink(name, to):
            os.symlink(to, name, dir_fd=dir_fd)


def _make_read_only(target_fd: int) -> None:
    mount_fd = abi.open_tree(target_fd, "", abi.OPEN_TREE_CLONE | abi.AT_EMPTY_PATH)
    _set_attributes(mount_fd, _RESTRICTED)
    _attach(mount_fd, target_fd)


def _set_attributes(mount_fd: int, attributes: int) -> None:
    attr = abi.mount_attr(attr_set=attributes)
    abi.mount_setattr(mount_fd, "", abi.AT_EMPTY_PATH, attr)


def _attach(mount_fd: int, target_fd: int) -> None:
    """Attach the mount at *target_fd*; closes both."""
    abi.move_mount(mount_fd, target_fd)
    os.close(mount_fd)
    os.close(target_fd)
