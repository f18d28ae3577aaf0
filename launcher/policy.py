"""What programs in a pod cannot ask of the kernel. Pure: this is the whole policy, as tables.

A pod has no user namespace: its root is the host's root, held by namespaces, capabilities and
this policy. It holds whatever capabilities the pod is given, and it holds for every program of
the pod alike. chroot(2) stays allowed, as mail and SSH servers use it; leaving a chroot leads no
further than the pod's root. ptrace(2) stays allowed: it reaches the pod's own processes only, and
its init is not dumpable.
"""

from dataclasses import dataclass
from typing import Final

# <errno.h>, the same on every architecture that Linux supports
EPERM: Final = 1
ENOSYS: Final = 38
EAFNOSUPPORT: Final = 97

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
    "mounts": (
        "mount", "umount2", "pivot_root", "open_tree", "open_tree_attr", "move_mount", "fsopen",
        "fsconfig", "fsmount", "fspick", "mount_setattr",
    ),
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

NEW_NAMESPACE: Final = 0x7E020000
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; <linux/sched.h>."""
NEW_TIME: Final = 0x80
"""CLONE_NEWTIME; in clone(2) this bit is part of the exit signal."""
TIOCSTI: Final = 0x5412
TIOCLINUX: Final = 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE: Final = 0


@dataclass(frozen=True, slots=True)
class NoBits:
    """The call fails with EPERM if its argument *arg* has any of the bits of *mask*.

    Only the low 32 bits of an argument are looked at, here and below: the kernel takes no more.
    """

    arg: int
    mask: int


@dataclass(frozen=True, slots=True)
class NotThese:
    """The call fails with EPERM if its argument *arg* is one of *values*."""

    arg: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OnlyFamilies:
    """The call fails with EAFNOSUPPORT unless its first argument is one of *families*.

    Or it is AF_NETLINK and the third argument, the protocol, is *netlink*.
    """

    families: tuple[int, ...]
    netlink: int


Check = NoBits | NotThese | OnlyFamilies

_FAMILIES: Final = OnlyFamilies((_AF_UNIX, _AF_INET, _AF_INET6), _NETLINK_ROUTE)

ARGUMENTS: Final[dict[str, Check]] = {
    "clone": NoBits(0, NEW_NAMESPACE),
    "unshare": NoBits(0, NEW_NAMESPACE | NEW_TIME),
    "ioctl": NotThese(1, (TIOCSTI, TIOCLINUX)),
    "socket": _FAMILIES,
    "socketpair": _FAMILIES,
}
"""Calls that are judged by their arguments. Of the socket families, the others are not private
to a network namespace (AF_VSOCK), reach the host (AF_ALG writes to the page cache it shares with
the pod), or have been a way into the kernel again and again."""
