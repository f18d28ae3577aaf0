"""Contents of the pod's own tmpfs (/dev/shm above all): tmpfs(5).

The restarted pod has the file systems already, empty or with what the launcher puts there; here
they get back what was in them. Sockets are left to those who bind them.
"""

import errno
import os
import stat as mode_bits
from collections.abc import Iterator

import msgspec

from ckpt.kinds import location
from ckpt.kinds.content import (
    Attributes,
    Content,
    collect_attributes,
    collect_content,
    rebuild_attributes,
    rebuild_content,
)
from ckpt.kinds.protocol import Dump, Mount, Workshop


class Entry(msgspec.Struct, frozen=True):
    """A file of a tmpfs.

    Attributes:
        path: relative to the mount point; b"." is the top.
        attributes: owner, permissions, times.
        type: "file", "directory", "symlink", "fifo", "char" or "block".
        content: of a file, unless it is a hard link.
        target: of a symlink; or the path of the entry that a hard link is to.
        device: major and minor number of a device.
    """

    path: bytes
    attributes: Attributes
    type: str
    content: Content | None = None
    target: bytes | None = None
    device: list[int] | None = None


class PodState(msgspec.Struct, frozen=True):
    """A tmpfs: its mount point, and the entries, directories before what is in them."""

    point: bytes
    entries: list[Entry]


def collect_pod(dump: Dump) -> Iterator[PodState]:
    """See protocol.PodKind."""
    seen: set[int] = set()
    hidden: dict[int, bytes] = {}
    for mount in dump.mounts().values():
        if not _is_own(mount) or mount.device in seen:
            continue
        top = _open(mount, dump)
        if top is None:
            hidden[mount.device] = mount.point
            continue
        seen.add(mount.device)
        try:
            first = Entry(b".", collect_attributes(top, os.fstat(top)), "directory")
            yield PodState(mount.point, [first, *_walk(top, mount.device, dump)])
        finally:
            os.close(top)
    for device in hidden.keys() - seen:
        what = f"the tmpfs that is mounted on {os.fsdecode(hidden[device])}"
        dump.refuse_pod(what, "another mount hides what is in it")


def _open(mount: Mount, dump: Dump) -> int | None:
    """Open the top of a tmpfs; None if something is mounted over it, or over its path."""
    try:
        top = location.open_in_pod(dump.pod_root_fd, mount.point, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as e:
        if e.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise
        return None
    if os.fstat(top).st_dev == mount.device:
        return top
    os.close(top)
    return None


def rebuild_pod(state: PodState, workshop: Workshop) -> None:
    """See protocol.PodKind."""
    top = location.open_in_pod(None, state.point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        device = os.fstat(top).st_dev
        for entry in state.entries:
            _make(entry, top, workshop)
        for entry in reversed(state.entries):  # what is in a directory changes its times
            stat = os.stat(entry.path, dir_fd=top, follow_symlinks=False)
            if entry.content is None and stat.st_dev == device:
                _dress(entry, top)
    finally:
        os.close(top)


def _is_own(mount: Mount) -> bool:
    """Is it a tmpfs that can hold something of the pod's? The launcher's masks cannot."""
    return mount.fstype == "tmpfs" and mount.whole and not mount.read_only and mount.point != b"/"


def _walk(top: int, device: int, dump: Dump) -> Iterator[Entry]:
    """Return what is below *top*, however deep, directories before what is in them."""
    links: dict[int, bytes] = {}
    pending = [b"."]
    while pending:
        directory = pending.pop()
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        try:
            for entry in _children(directory_fd, directory, device, links, dump):
                yield entry
                if entry.type == "directory":
                    pending.append(entry.path)
        finally:
            os.close(directory_fd)


def _children(
    directory_fd: int, directory: bytes, device: int, links: dict[int, bytes], dump: Dump
) -> Iterator[Entry]:
    for name in sorted(os.fsencode(name) for name in os.listdir(directory_fd)):
        stat = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        path = name if directory == b"." else os.path.join(directory, name)
        if stat.st_dev != device or mode_bits.S_ISSOCK(stat.st_mode):
            continue  # something is mounted there; or its owner will bind it
        if stat.st_ino in links:
            yield Entry(path, collect_attributes(None, stat), "file", target=links[stat.st_ino])
            continue
        if mode_bits.S_ISREG(stat.st_mode):
            if stat.st_nlink > 1:
                links[stat.st_ino] = path
            yield _file(path, name, directory_fd, dump)
        elif mode_bits.S_ISDIR(stat.st_mode):
            yield _directory(path, name, directory_fd)
        else:
            yield _special(path, name, directory_fd, stat)


def _directory(path: bytes, name: bytes, directory_fd: int) -> Entry:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory_fd)
    try:
        return Entry(path, collect_attributes(fd, os.fstat(fd)), "directory")
    finally:
        os.close(fd)


def _file(path: bytes, name: bytes, directory_fd: int, dump: Dump) -> Entry:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME, dir_fd=directory_fd)
    try:
        stat = os.fstat(fd)
        content = collect_content(fd, stat.st_size, dump)
        return Entry(path, collect_attributes(fd, stat), "file", content)
    finally:
        os.close(fd)


def _special(path: bytes, name: bytes, directory_fd: int, stat: os.stat_result) -> Entry:
    attributes = collect_attributes(None, stat)
    if mode_bits.S_ISLNK(stat.st_mode):
        return Entry(path, attributes, "symlink", target=os.readlink(name, dir_fd=directory_fd))
    if mode_bits.S_ISFIFO(stat.st_mode):
        return Entry(path, attributes, "fifo")
    device = [os.major(stat.st_rdev), os.minor(stat.st_rdev)]
    return Entry(
        path, attributes, "char" if mode_bits.S_ISCHR(stat.st_mode) else "block", device=device
    )


def _make(entry: Entry, top: int, workshop: Workshop) -> None:
    """Make the entry, unless it is there already."""
    try:
        if entry.type == "directory":
            os.mkdir(entry.path, 0o700, dir_fd=top)
        elif entry.type == "symlink":
            os.symlink(entry.target or b"", entry.path, dir_fd=top)
        elif entry.target is not None:
            os.link(entry.target, entry.path, src_dir_fd=top, dst_dir_fd=top)
        elif entry.content is not None:
            _write(entry, entry.content, top, workshop)
        else:
            _make_node(entry, top)
    except FileExistsError:
        return


def _write(entry: Entry, content: Content, top: int, workshop: Workshop) -> None:
    mode = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    fd = os.open(entry.path, mode, 0o600, dir_fd=top)
    try:
        rebuild_content(content, fd, workshop)
        rebuild_attributes(entry.attributes, fd)
    finally:
        os.close(fd)


def _make_node(entry: Entry, top: int) -> None:
    kinds = {"fifo": mode_bits.S_IFIFO, "char": mode_bits.S_IFCHR, "block": mode_bits.S_IFBLK}
    if entry.type not in kinds:
        raise ValueError(f"{entry.path!r} is of the unknown type {entry.type!r}")
    major, minor = entry.device or (0, 0)
    os.mknod(entry.path, 0o600 | kinds[entry.type], os.makedev(major, minor), dir_fd=top)


def _dress(entry: Entry, top: int) -> None:
    """Give a directory or special file its attributes."""
    if entry.type == "directory":
        fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        try:
            rebuild_attributes(entry.attributes, fd)
        finally:
            os.close(fd)
        return
    attributes = entry.attributes
    os.chown(entry.path, attributes.uid, attributes.gid, dir_fd=top, follow_symlinks=False)
    if entry.type != "symlink":
        os.chmod(entry.path, attributes.mode, dir_fd=top)
    times = (attributes.atime_ns, attributes.mtime_ns)
    os.utime(entry.path, ns=times, dir_fd=top, follow_symlinks=False)
