"""Numbers of the system calls that launcher/policy.py names. Pure.

Compared with libseccomp's tables by tests/kernel/launcher/test_seccomp.py.
"""

from typing import Final

LAST: Final = 469
"""The newest number that the policy has judged: file_setattr, Linux v6.18."""

# From 424 on the numbers are the same on every architecture:
# scripts/syscall.tbl and arch/x86/entry/syscalls/syscall_64.tbl, Linux v6.18.
_COMMON: Final = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "open_tree_attr": 467,
}

# name: (x86_64, aarch64), None where the architecture has no such call
_OLD: Final[dict[str, tuple[int | None, int | None]]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}


def _column(column: int) -> dict[str, int]:
    numbers = {name: row[column] for name, row in _OLD.items()}
    return {name: n for name, n in numbers.items() if n is not None} | _COMMON


NUMBERS: Final = {"x86_64": _column(0), "aarch64": _column(1)}
"""Machine, as uname(2) names it -> name of a call -> number."""
