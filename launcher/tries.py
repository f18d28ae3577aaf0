"""What the attempts of `launcher probe` do.

They run in processes that are confined as a program of the pod (launcher.probe), each in one of
its own; nothing here may import lazily. One that succeeds shows what could be done and does not do
it: calls get arguments with which they change nothing, files are opened and not written to, mounts
are taken away again.
"""

import errno
import fcntl
import mmap
import os
import resource
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import CFUNCTYPE, addressof, c_char, c_int, create_string_buffer
from typing import Final

from msgspec import Struct

from launcher import abi, policy
from launcher.syscalls import NUMBERS


class Outside(Struct, frozen=True):
    """What an attempt has to know of the host.

    Attributes:
        namespaces: name in /proc/PID/ns -> inode of the launcher's own.
        devices: device number of its /dev.
        capabilities: what programs of the pod may have, as a bit mask.
        passed: descriptors that a program would have inherited beyond 0, 1 and 2.
    """

    namespaces: dict[str, int]
    devices: int
    capabilities: int
    passed: tuple[str, ...] = ()


class Found(Struct, frozen=True):
    """What came of an attempt."""

    held: bool
    reason: str


Do = Callable[[Outside], Found]


HELD: Final = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.EROFS,
        errno.ENOENT,
        errno.ENXIO,
        errno.ENOSYS,
        errno.EAFNOSUPPORT,
        errno.EPROTONOSUPPORT,
        errno.ESOCKTNOSUPPORT,
        errno.ESRCH,
    }
)
"""Errors by which the kernel refuses. Any other (EINVAL, EFAULT) means that it would have acted."""

_SCRATCH: Final = "/dev/shm/.probe"  # noqa: S108 (of the pod)
_FIFO: Final = 1
RT_CLASS: Final = 1 << 13
"""IOPRIO_CLASS_RT as ioprio_set(2) takes it."""
_LOCKED: Final = 64 << 20


def _held(reason: str) -> Found:
    return Found(held=True, reason=reason)


def _open(reason: str) -> Found:
    return Found(held=False, reason=reason)


def _judge(reason: str) -> Found:
    """Return what *reason*, empty if nothing is wrong, means."""
    return _open(reason) if reason else _held("nothing found")


def _raw(number: int, *args: int | bytes) -> int:
    """Make call *number*; OSError if it fails."""
    return abi.syscall(number, *args)


def _number(name: str) -> int:
    return NUMBERS[os.uname().machine].get(name, -1)


def call_number(number: int) -> Do:
    """Make a call of which only the number is known."""
    return lambda outside: _open(f"answered {_raw(number, 0, 0, 0, 0, 0, 0)}")


def call(name: str, *args: int | bytes) -> Do:
    """Make the call *name*, whose arguments are such that it cannot succeed."""

    def do(outside: Outside) -> Found:
        number = _number(name)
        if number < 0:
            return _held("no such call on this machine")
        _raw(number, *args)
        return _open("succeeded")

    return do


def socket(family: int, kind: int, protocol: int = 0) -> Do:
    """Make a socket."""

    def do(outside: Outside) -> Found:
        os.close(_raw(_number("socket"), family, kind, protocol))
        return _open("a socket was made")

    return do


def write_to(path: str) -> Do:
    """Open *path* for writing."""

    def do(outside: Outside) -> Found:
        os.close(os.open(path, os.O_WRONLY))
        return _open("opened for writing")

    return do


def read(path: str) -> Do:
    """Look for anything in *path*, which shall be absent, empty, or masked."""

    def do(outside: Outside) -> Found:
        if os.path.isdir(path):
            return _judge(f"shows {len(os.listdir(path))} entries" if os.listdir(path) else "")
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        return _judge("can be read" if os.read(fd, 1) else "")

    return do


def mount(fstype: str, *, bind: bool = False) -> Do:
    """Mount something on a directory that is made for it, and take both away again."""

    def do(outside: Outside) -> Found:
        os.mkdir(_SCRATCH)
        try:
            if bind:
                abi.mount("/", _SCRATCH, None, abi.MS_BIND)
            else:
                abi.mount(fstype, _SCRATCH, fstype, 0)
            abi.umount2(_SCRATCH, abi.MNT_DETACH)
        finally:
            with suppress(OSError):
                os.rmdir(_SCRATCH)
        return _open("mounted")

    return do


def namespace(name: str) -> Do:
    """Compare our namespace with the launcher's own."""

    def do(outside: Outside) -> Found:
        own = os.stat(f"/proc/self/ns/{name}").st_ino
        return _judge("is the host's" if own == outside.namespaces[name] else "")

    return do


# --- ways in by another entry --------------------------------------------------------------


def i386(outside: Outside) -> Found:
    """Make getpid(2) of i386 by `mov $20,%eax; int $0x80; ret`."""
    if os.uname().machine != "x86_64":
        return _held("no such entry on this machine")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\0\0\0\xcd\x80\xc3")
    answer = CFUNCTYPE(c_int)(addressof(c_char.from_buffer(page)))()
    return _held(os.strerror(-answer)) if answer < 0 else _open(f"answered {answer}")


def x32(outside: Outside) -> Found:
    """Make getpid(2) by the number that x32 has for it."""
    if os.uname().machine != "x86_64":
        return _held("no such entry on this machine")
    return _open(f"answered {_raw(1 << 30 | _number('getpid'))}")


# --- terminals -----------------------------------------------------------------------------


def terminal_call(command: int) -> Do:
    """Ask a terminal of the pod, our controlling one, for *command* with 64 bits."""

    def do(outside: Outside) -> Found:
        os.setsid()
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(master, abi.TIOCSPTLCK, struct.pack("i", 0))
        number = struct.unpack("i", fcntl.ioctl(master, abi.TIOCGPTN, bytes(4)))[0]
        slave = os.open(f"/dev/pts/{number}", os.O_RDWR)
        _raw(_number("ioctl"), slave, command, b"x")
        return _open("the terminal took it")

    return do


# --- what is in sight ----------------------------------------------------------------------


def passed_descriptors(outside: Outside) -> Found:
    """Tell what execve(2) would have passed on."""
    return _judge(f"a program gets {', '.join(outside.passed)}" if outside.passed else "")


def directory(outside: Outside) -> Found:
    """Look where a program begins."""
    return _judge("" if os.getcwd() == "/" else f"begins in {os.getcwd()}")


def control_groups(outside: Outside) -> Found:
    """Look for names of groups of the host."""
    with open("/proc/self/cgroup") as file:
        paths = {line.rstrip("\n").split(":", 2)[2] for line in file}
    return _judge("" if paths == {"/"} else f"shows {', '.join(sorted(paths))}")


def _mounts() -> Iterator[tuple[str, list[str], str]]:
    """Return mount point, options and type of each mount (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            mount, _, filesystem = line.partition(" - ")
            fields = mount.split()
            yield fields[4], fields[5].split(","), filesystem.split()[0]


_KERNELS: Final = (
    "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devtmpfs", "efivarfs", "mqueue", "nsfs",
    "pstore", "securityfs", "sysfs", "tracefs",
)  # fmt: skip


def kernel_file_systems(outside: Outside) -> Found:
    """Look for them; of sysfs the pod is shown a part, read-only (launcher.plan)."""
    shown = [(p, t) for p, o, t in _mounts() if t in _KERNELS and not (t == "sysfs" and "ro" in o)]
    return _judge(", ".join(f"{t} on {p}" for p, t in shown))


def device_node(kind: int, number: tuple[int, int]) -> Do:
    """Make a device node that is none of the policy's."""

    def do(outside: Outside) -> Found:
        os.mknod(_SCRATCH, kind | 0o600, os.makedev(*number))
        os.unlink(_SCRATCH)
        return _open("made")

    return do


def hosts_devices(outside: Outside) -> Found:
    """The nodes below /dev are ours to change: they shall not be the host's."""
    same = os.stat("/dev/null").st_dev == outside.devices
    return _judge("/dev is the host's" if same else "")


def init_descriptor(outside: Outside) -> Found:
    """Take a descriptor of process 1 (pidfd_getfd(2))."""
    os.close(_raw(_number("pidfd_getfd"), os.pidfd_open(1), 0, 0))
    return _open("taken")


def init_memory(outside: Outside) -> Found:
    """Read a byte of process 1 (process_vm_readv(2)), at an address that is not mapped."""
    into = create_string_buffer(1)
    local, remote = (
        create_string_buffer(struct.pack("PN", address, 1)) for address in (addressof(into), 4096)
    )
    _raw(_number("process_vm_readv"), 1, addressof(local), 1, addressof(remote), 1, 0)
    return _open("read")


def device_nodes(outside: Outside) -> Found:
    """Look for nodes below /dev that are not the policy's, nor terminals of the pod."""
    strange = []
    for directory, _, files in os.walk("/dev"):
        for path in (os.path.join(directory, name) for name in files):
            status = os.lstat(path)
            number = os.major(status.st_rdev), os.minor(status.st_rdev)
            known = number in policy.DEVICES.values() or number == (5, 2) or number[0] == 136
            if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and not known):
                strange.append(path)
    return _judge(", ".join(strange))


def devices_of_the_tree(outside: Outside) -> Found:
    """A node that lies in the root tree must open no device."""
    options = [o for point, o, _ in _mounts() if point == "/"]
    return _judge("" if all("nodev" in o for o in options) else "/ has no nodev")


def walk_up(outside: Outside) -> Found:
    """Leave a chroot by a descriptor from before, and climb."""
    root = os.stat("/")
    outer = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.chroot("/dev/shm")  # noqa: S108 (of the pod)
    os.fchdir(outer)
    for _ in range(64):
        os.chdir("..")
    return _judge("" if os.path.samestat(os.stat("."), root) else "stands above the root")


def init_root(outside: Outside) -> Found:
    """Climb from the root of process 1."""
    same = os.path.samestat(os.stat("/proc/1/root/.."), os.stat("/"))
    return _judge("" if same else "is another")


# --- what a program has --------------------------------------------------------------------


def _status(pid: str = "self") -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def no_more_than(field: str, *, none: bool = False) -> Do:
    """Compare a set of capabilities with what the pod may have."""

    def do(outside: Outside) -> Found:
        beyond = int(_status()[field], 16) & ~(0 if none else outside.capabilities)
        return _judge(f"has {beyond:#x} beyond" if beyond else "")

    return do


def filters(outside: Outside) -> Found:
    """Every process that we see has a filter: none came in less confined than another."""
    bare = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError):
            if _status(pid)["Seccomp"] != "2":
                bare.append(pid)
    return _judge(f"process {', '.join(bare)} has none" if bare else "")


def set_user_id(outside: Outside) -> Found:
    """See whether executing a set-user-ID program gains anything."""
    return _judge("" if _status()["NoNewPrivs"] == "1" else "they have their effect")


def fifo(outside: Outside) -> Found:
    """Ask for real-time scheduling."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_FIFO))
    return _open("real-time priority")


def raise_limit(outside: Outside) -> Found:
    """Raise a hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY:
        return _open("there is none")
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard + 4096))
    except ValueError as e:  # what Python makes of EPERM
        return _held(str(e))
    return _open("raised")


def lock_memory(outside: Outside) -> Found:
    """Lock more memory than a user may (policy.UNPRIVILEGED_LIMITS)."""
    memory = mmap.mmap(-1, _LOCKED)
    try:
        _raw(_number("mlock"), addressof(c_char.from_buffer(memory)), _LOCKED)
    except OSError as e:
        if e.errno == errno.ENOMEM:  # mlock(2): more than RLIMIT_MEMLOCK
            return _held("more than the limit")
        raise
    return _open("64 MiB locked")
