"""The monitor's hands in the pod: a process that mounts and unmounts for the pod's programs.

It lives in the pod's mount namespace but in the host's pid namespace, so that no program of the
pod can see it, and it cannot be read. One request at a time, on a socket of the monitor's: what to
do, with two descriptors, the caller's root and working directory; the answer is an errno.

Paths are walked as the caller would, from its root and directory, without following the magic
links of /proc. What a pod was made with is never covered and never detached: only a directory that
is no mount point, or one of the caller's own mounts, gets a new mount. Single-threaded; forked by
launcher.holding.
"""

import errno
import os
import re
import socket
from typing import Final, NoReturn

import msgspec

from launcher import abi, capabilities, confine, emulation, spawn
from launcher.emulation import Mount, Request, Unmount
from launcher.execute import new_file_system
from launcher.plan import FileSystem

_PACKET: Final = 16384
_CAPABILITIES: Final = ("dac_read_search", "sys_admin", "sys_chroot")
_UNTOUCHABLE: Final = frozenset({"proc", "sysfs", "devpts"})


class _Mounted(msgspec.Struct, frozen=True):
    """A mount: a line of /proc/self/mountinfo, proc_pid_mountinfo(5)."""

    point: bytes
    fstype: str
    source: str


def run(channel: socket.socket, pod_fd: int) -> NoReturn:
    """Serve the monitor at the other end of *channel* until it closes that.

    Args:
        channel: SOCK_SEQPACKET.
        pod_fd: pidfd of the pod's init.
    """
    spawn.hide()
    host_proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    abi.setns(pod_fd, abi.CLONE_NEWNS | abi.CLONE_NEWPID)  # the pid namespace: for children only
    confine.apply(confine.Confinement(capabilities.mask(_CAPABILITIES), True, b""))
    mounter = _Mounter(host_proc_fd, os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    decoder = msgspec.msgpack.Decoder(Request)
    while True:
        packet, fds, _, _ = socket.recv_fds(channel, _PACKET, 2, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            os._exit(0)
        result = mounter.do(decoder.decode(packet), *fds)
        for fd in fds:
            os.close(fd)
        channel.send(msgspec.msgpack.encode(result))


class _Mounter:
    def __init__(self, host_proc_fd: int, pod_root_fd: int) -> None:
        self._host_proc_fd, self._pod_root_fd = host_proc_fd, pod_root_fd

    def do(self, request: Request, root_fd: int, directory_fd: int) -> int:
        """Carry *request* out; return 0 or an errno."""
        try:
            target_fd = self._open(request.target, _flags(request), root_fd, directory_fd)
            try:
                if isinstance(request, Mount):
                    return self._mount(request, target_fd)
                return self._unmount(request, target_fd)
            finally:
                os.close(target_fd)
        except OSError as e:
            return e.errno or errno.EIO

    def _open(self, path: bytes, flags: int, root_fd: int, directory_fd: int) -> int:
        """Return an O_PATH descriptor of the caller's *path*."""
        try:
            os.fchdir(root_fd)
            os.chroot(".")
            os.fchdir(directory_fd)
            text = os.fsdecode(path)
            return abi.openat2(abi.AT_FDCWD, text, os.O_PATH | flags, abi.RESOLVE_NO_MAGICLINKS)
        finally:
            os.fchdir(self._pod_root_fd)
            os.chroot(".")
            os.fchdir(self._host_proc_fd)

    def _mount(self, request: Mount, target_fd: int) -> int:
        mounts = _mounts()
        below = _mount_of(target_fd, mounts)
        is_root = _path(target_fd) == below.point
        ours = below.source == emulation.SOURCE
        if below.fstype in _UNTOUCHABLE or (is_root and not ours):
            return errno.EBUSY
        if is_root and request.again and below.fstype == request.fstype:
            return 0
        if mounts.count(f" {emulation.SOURCE} ".encode()) >= emulation.MOUNTS:
            return errno.ENOSPC
        mount_fd = make(request)
        try:
            abi.move_mount(mount_fd, target_fd)
        finally:
            os.close(mount_fd)
        return 0

    def _unmount(self, request: Unmount, target_fd: int) -> int:
        mount = _mount_of(target_fd, _mounts())
        if _path(target_fd) != mount.point:
            return 0 if request.again else errno.EINVAL
        if mount.source != emulation.SOURCE:
            return errno.EPERM
        # Our own descriptor keeps it busy, so it goes as a lazy unmount does.
        abi.umount2(f"self/fd/{target_fd}", abi.MNT_DETACH)
        return 0


# The working directory is the host's /proc, and `self` this process.


def _mounts() -> bytes:
    """Return the mounts of the pod, one a line; spaces in names are escaped."""
    with open("self/mountinfo", "rb") as file:
        return b"\n" + file.read()


def _mount_of(fd: int, mounts: bytes) -> _Mounted:
    """Return the mount that *fd* is on."""
    with open(f"self/fdinfo/{fd}", "rb") as file:
        number = next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))
    _, _, rest = mounts.partition(b"\n%b " % number)
    fields, _, more = rest.partition(b"\n")[0].partition(b" - ")
    fstype, source, *_ = more.decode("latin-1").split(" ")
    point = fields.split(b" ")[3]
    unescaped = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), point)
    return _Mounted(unescaped, fstype, source)


def _path(fd: int) -> bytes:
    return os.readlink(f"self/fd/{fd}".encode())


def _flags(request: Request) -> int:
    """Return how the target is to be opened, besides O_PATH."""
    if isinstance(request, Mount):
        return os.O_DIRECTORY
    return 0 if request.follow else os.O_NOFOLLOW


def make(request: Mount) -> int:
    """Return a new, detached mount of what *request* asks for; the caller owns it.

    Children of the calling process must be born in the pod's pid namespace.

    Raises:
        OSError: it cannot be made.
    """
    step = FileSystem(request.fstype, "", tuple(request.options))
    if request.fstype == "proc":
        return _made_in_the_pod(step, request.attributes)
    return new_file_system(step, request.attributes)


def _made_in_the_pod(step: FileSystem, attributes: int) -> int:
    """Return a new, detached mount, made by a process of the pod's pid namespace.

    Of a proc file system that decides whose processes it shows.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            _make_and_send(step, attributes, theirs)
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
        os.waitpid(child, 0)
    if not fds:  # it could not, or a program of the pod has killed it
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fds[0]


def _make_and_send(step: FileSystem, attributes: int, channel: socket.socket) -> NoReturn:
    try:
        socket.send_fds(channel, [b"m"], [new_file_system(step, attributes)])
    finally:
        os._exit(0)
