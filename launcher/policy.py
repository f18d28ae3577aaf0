"""What programs in a pod cannot ask of the kernel. Pure: this is the whole policy, as tables.

A pod's root is the host's root, held by namespaces, capabilities and this policy. It knows three
classes of calls: *disabled*, *privilege-dropped* and *argument-filtered*; all others are let
through. It holds for every program of the pod alike, whatever capabilities the pod is given, and
is compiled to a filter (launcher.seccomp), or, where a call has to be judged by what is in memory,
carried out by the pod's monitor (launcher.monitor): never judged there and then let through, since
another thread may change memory in between (seccomp_unotify(2)).

A profile says how much of it there is: `strict` for programs that need nothing special, `service`
for those that begin as root and change user, `debian` for a whole Debian system in which packages
are installed. A pod's configuration may take calls out, and add others.
"""

from collections.abc import Collection
from typing import Final

from msgspec import Struct

from launcher import capabilities as caps
from launcher.syscalls import KNOWN

# <errno.h>, the same on every architecture that Linux supports
EPERM: Final = 1
ENOSYS: Final = 38
EAFNOSUPPORT: Final = 97

# --- disabled ------------------------------------------------------------------------------

_MOUNT_DESCRIPTORS: Final = (
    "fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "open_tree_attr",
    "mount_setattr",
)  # fmt: skip

DISABLED: Final[dict[str, tuple[str, ...]]] = {
    "the kernel's code": (
        "init_module", "finit_module", "delete_module", "create_module", "query_module",
        "get_kernel_syms", "kexec_load", "kexec_file_load", "bpf",
    ),
    "the machine": (
        "reboot", "swapon", "swapoff", "settimeofday", "clock_settime", "acct", "quotactl",
        "quotactl_fd", "iopl", "ioperm", "vhangup", "nfsservctl", "uselib", "_sysctl", "sysfs",
        "ustat",
    ),
    "what belongs to all processes of the machine": (
        "syslog", "keyctl", "add_key", "request_key", "perf_event_open", "lookup_dcookie",
        "fanotify_init",
    ),
    "files by handle, past every directory on the way": ("open_by_handle_at", "name_to_handle_at"),
    "mounts": ("mount", "umount2", "pivot_root", *_MOUNT_DESCRIPTORS),
    "other namespaces": ("setns",),
    "work handed to the kernel, where no filter sees it": (
        "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd",
    ),
}  # fmt: skip
"""Purpose -> calls that fail with EPERM whatever their arguments. adjtimex(2) is not among them:
reading it is harmless, and setting needs CAP_SYS_TIME."""

ABSENT: Final = ("clone3", "memfd_secret")
"""Calls that fail with ENOSYS, so that a program takes another way: clone3(2) keeps its flags in
memory, where a filter cannot look (the C library then uses clone(2)); memory of memfd_secret(2)
cannot be checkpointed. The same goes for calls newer than launcher.syscalls.LAST, and for x32."""

# --- privilege-dropped ---------------------------------------------------------------------

DROPPED: Final[dict[str, tuple[str, ...]]] = {
    "sys_nice": (
        "setpriority", "sched_setscheduler", "sched_setparam", "sched_setattr",
        "sched_setaffinity", "ioprio_set", "migrate_pages", "move_pages", "mbind",
    ),
    "sys_resource": ("setrlimit", "prlimit64", "mq_open", "fcntl", "ioctl"),
    "ipc_lock": ("mlock", "mlock2", "mlockall", "shmctl"),
    "sys_admin": ("ioctl", "sethostname", "setdomainname"),
    "sys_tty_config": ("ioctl",),
    "net_admin": ("ioctl", "setsockopt"),
    "linux_immutable": ("ioctl",),
    "sys_time": ("adjtimex", "clock_adjtime"),
}  # fmt: skip
"""Capability -> calls that ask for it. No profile has any of these capabilities, so that the calls
do for the pod's root what they do for any user: nice values rise, limits fall, memory is locked
and processors are chosen within the limits, and of ioctl(2) works what anybody may do to his own
files, sockets and terminals. The limits are those of an unprivileged user (UNPRIVILEGED_LIMITS)."""

UNPRIVILEGED_LIMITS: Final[dict[str, tuple[str, int]]] = {
    "NICE": ("sys_nice", 0),
    "RTPRIO": ("sys_nice", 0),
    "MEMLOCK": ("ipc_lock", 8 << 20),
}
"""Resource -> the capability without which it is at most so much: without it the limit is all that
the kernel asks for, and whoever starts the pod may have a higher one. 8 MiB is the kernel's
default (MLOCK_LIMIT, <linux/resource.h>)."""

# --- argument-filtered ---------------------------------------------------------------------

NEW_NAMESPACE: Final = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; <linux/sched.h>."""
NEW_TIME: Final = 0x80
"""CLONE_NEWTIME; in clone(2) this bit is part of the exit signal."""
TIOCSTI: Final = 0x5412
TIOCLINUX: Final = 0x541C
TIOCSETD: Final = 0x5423
_AF_UNIX, _AF_INET, _AF_INET6, AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE: Final = 0

DEVICES: Final[dict[str, tuple[int, int]]] = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
"""The device nodes that a pod may have: character devices, major and minor number."""


class NoBits(Struct, frozen=True):
    """The call fails with EPERM if its argument *arg* has any of the bits of *mask*.

    Only the low 32 bits of an argument are looked at, here and below: the kernel takes no more.
    """

    arg: int
    mask: int
    meaning: str


class NotThese(Struct, frozen=True):
    """The call fails with EPERM if its argument *arg* is one of *values*."""

    arg: int
    values: tuple[int, ...]
    meaning: str


class OnlyFamilies(Struct, frozen=True):
    """The call fails with EAFNOSUPPORT unless its first argument is one of *families*.

    Or it is AF_NETLINK and the third argument, the protocol, is *netlink*.
    """

    families: tuple[int, ...]
    netlink: int
    meaning: str


class OnlyDevices(Struct, frozen=True):
    """The call fails with EPERM for a device node that is none of *devices*.

    Argument *mode* has the type of the file, the one after it the device's number (mknod(2)).
    """

    mode: int
    devices: tuple[tuple[int, int], ...]
    meaning: str


class Emulated(Struct, frozen=True):
    """The pod's monitor carries the call out, as far as it may be.

    It fails with EPERM, without asking the monitor, if argument *flags* has other bits than
    *mask*.
    """

    flags: int
    mask: int
    meaning: str


Check = NoBits | NotThese | OnlyFamilies | OnlyDevices | Emulated

_FAMILIES: Final = OnlyFamilies(
    (_AF_UNIX, _AF_INET, _AF_INET6), _NETLINK_ROUTE, "unix, IPv4, IPv6, route netlink only"
)
_DEVICE_NODES: Final = f"no devices but {' '.join(DEVICES)}"

ARGUMENTS: Final[dict[str, Check]] = {
    "clone": NoBits(0, NEW_NAMESPACE, "no new namespaces"),
    "unshare": NoBits(0, NEW_NAMESPACE | NEW_TIME, "no new namespaces"),
    "ioctl": NotThese(
        1,
        (TIOCSTI, TIOCLINUX, TIOCSETD),
        "no TIOCSTI, TIOCLINUX (input for others), TIOCSETD (line disciplines)",
    ),
    "socket": _FAMILIES,
    "socketpair": _FAMILIES,
    "mknod": OnlyDevices(1, tuple(DEVICES.values()), _DEVICE_NODES),
    "mknodat": OnlyDevices(2, tuple(DEVICES.values()), _DEVICE_NODES),
}
"""Calls that are judged by their arguments. Of the socket families, the others are not private
to a network namespace (AF_VSOCK), reach the host (AF_ALG writes to the page cache it shares with
the pod), or have been a way into the kernel again and again, as line disciplines have."""

MOUNT_FLAGS: Final = {
    "ro": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "silent": 0x8000,
    "relatime": 0x200000,
    "strictatime": 0x1000000,
}
"""The MS_* bits of mount(2) that a pod may ask for: none that binds, moves, shares or remounts."""
UMOUNT_FLAGS: Final = {"force": 1, "detach": 2, "nofollow": 8}

_MOUNTING: Final[dict[str, Check]] = {
    "mount": Emulated(
        3,
        sum(MOUNT_FLAGS.values()),
        "tmpfs, and proc with the pod's processes only; nosuid, nodev, bounded in size",
    ),
    "umount2": Emulated(1, sum(UMOUNT_FLAGS.values()), "what the pod has mounted itself"),
}

BY_NAMESPACE: Final[dict[str, tuple[str, ...]]] = {
    "its own processes; its init is not dumpable": (
        "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp",
        "process_madvise", "kill", "tgkill", "pidfd_open", "pidfd_send_signal",
    ),
    "its own root, and no further": ("chroot",),
}  # fmt: skip
"""How far calls reach that the pod's namespaces confine, not the filter -> those calls."""


# --- profiles ------------------------------------------------------------------------------


class Profile(Struct, frozen=True):
    """How much of the policy a pod has that says nothing else.

    Attributes:
        about: for whom it is.
        capabilities: of its programs.
        no_new_privileges: executing a set-user-ID program changes nothing (prctl(2)).
        arguments: calls that are judged by their arguments, not as DISABLED or ARGUMENTS say.
        absent: calls that are ABSENT as well.
    """

    about: str
    capabilities: tuple[str, ...]
    no_new_privileges: bool
    arguments: dict[str, Check] = {}  # msgspec copies it
    absent: tuple[str, ...] = ()


PROFILES: Final[dict[str, Profile]] = {
    "strict": Profile("programs that need nothing special", caps.SERVICE, no_new_privileges=True),
    "service": Profile(
        "services that execute set-user-ID programs or drop capabilities themselves",
        (*caps.SERVICE, "setpcap"),
        no_new_privileges=False,
    ),
    "debian": Profile(
        "a whole Debian system: apt-get, dpkg, and what packages do when they are installed",
        (*caps.SERVICE, "mknod", "setfcap", "setpcap"),
        no_new_privileges=False,
        arguments=_MOUNTING,
        absent=_MOUNT_DESCRIPTORS,  # mount(8) then uses mount(2)
    ),
}


class Rules(Struct, frozen=True):
    """The policy of one pod's filter.

    Attributes:
        disabled: purpose -> calls that fail with EPERM.
        absent: calls that fail with ENOSYS.
        arguments: calls that are judged by their arguments.
    """

    disabled: dict[str, tuple[str, ...]]
    absent: tuple[str, ...]
    arguments: dict[str, Check]

    @property
    def emulated(self) -> tuple[str, ...]:
        """The calls that the pod's monitor carries out."""
        return tuple(name for name, c in self.arguments.items() if isinstance(c, Emulated))


def rules(
    profile: str = "strict", allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()
) -> Rules:
    """Return the rules of *profile* with a pod's own additions.

    Args:
        profile: one of PROFILES.
        allow: calls to let through, whatever the tables say.
        deny: further calls to disable.
    """
    chosen = PROFILES[profile]
    own = {*allow, *deny}
    arguments = {name: c for name, c in (ARGUMENTS | chosen.arguments).items() if name not in own}
    absent = tuple(name for name in (*ABSENT, *chosen.absent) if name not in own)
    elsewhere = {*arguments, *absent, *own}
    disabled = {
        purpose: tuple(name for name in calls if name not in elsewhere)
        for purpose, calls in DISABLED.items()
    }
    if deny:
        disabled["the pod's configuration"] = deny
    return Rules(
        {purpose: calls for purpose, calls in disabled.items() if calls}, absent, arguments
    )


def restricted() -> frozenset[str]:
    """Return every call that a pod's configuration can let through."""
    named = {name for calls in DISABLED.values() for name in calls}
    return frozenset(named | {*ABSENT} | ARGUMENTS.keys())


def is_call(name: str) -> bool:
    """Is there a system call of this name?"""
    return name in KNOWN


def lowered_limits(granted: Collection[str]) -> dict[str, int]:
    """Return resource -> its upper bound for programs with the capabilities *granted*."""
    return {r: most for r, (cap, most) in UNPRIVILEGED_LIMITS.items() if cap not in granted}
