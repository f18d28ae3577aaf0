"""The attempts of `launcher probe`: known ways out of a pod, as a table."""

import signal
import stat
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from launcher import policy, tries
from launcher.syscalls import LAST


class Attempt(Struct, frozen=True):
    """A way out.

    Attributes:
        name: what is tried.
        against: what it would be: the bug or technique it stands for.
        do: tries it; see launcher.tries.
        calls: system calls that `privileges.allow` may open on purpose.
        grants: capabilities that open it on purpose, or "no_new_privileges" (turned off).
        emulated: the pod's monitor may do it, in a harmless form, where the profile says so.
    """

    name: str
    against: str
    do: tries.Do
    calls: tuple[str, ...] = ()
    grants: tuple[str, ...] = ()
    emulated: bool = False


_USERNS: Final = "the way to most kernel bugs (CVE-2022-0185)"
_SOCKETS: Final = "families that reach past the network namespace (CVE-2026-31431)"
_WRITES: Final = "writes that reach the host (CVE-2025-52881)"
_SPEAKS: Final = "what speaks of the host"
_INIT: Final = "init as a stepping stone (CVE-2019-5736)"
_LESS: Final = "less confinement than the first program's"
_MORE: Final = "more than an unprivileged user's share"


def _calls(against: str, *calls: tuple[str, *tuple[int | bytes, ...]]) -> Iterator[Attempt]:
    """Return an attempt for each call, which the policy disables."""
    for name, *args in calls:
        yield Attempt(f"{name}()", against, tries.call(name, *args), calls=(name,))


def _new_namespaces() -> Iterator[Attempt]:
    for name, bit in (
        ("user", 0x10000000), ("mnt", 0x20000), ("pid", 0x20000000), ("net", 0x40000000),
        ("uts", 0x4000000), ("ipc", 0x8000000), ("cgroup", 0x2000000), ("time", 0x80),
    ):  # fmt: skip
        yield Attempt(f"unshare {name}", _USERNS, tries.call("unshare", bit), calls=("unshare",))
    # CLONE_FS forbids it, which the kernel says only if it would have done it (copy_process())
    refused = 0x10000000 | 0x200 | signal.SIGCHLD
    yield Attempt("clone user", _USERNS, tries.call("clone", refused, 0, 0, 0, 0), ("clone",))


# fmt: off
ATTEMPTS: Final = (
    *(
        Attempt(f"the host's {name} namespace", "namespaces", tries.namespace(name))
        for name in ("mnt", "pid", "ipc", "uts", "net", "cgroup", "time")
    ),
    *_new_namespaces(),
    *_calls("flags behind a pointer, which no filter sees", ("clone3", 0, 0)),
    *_calls("into other namespaces (CVE-2024-21626)", ("setns", -1, 0)),
    *(
        Attempt(f"mount {t}", "mounts (CVE-2022-0492)", tries.mount(t), ("mount",), emulated=e)
        for t, e in (
            ("tmpfs", True), ("proc", True), ("sysfs", False), ("cgroup", False),
            ("cgroup2", False), ("devtmpfs", False), ("debugfs", False),
        )
    ),
    Attempt("bind /", "mounts", tries.mount("", bind=True), ("mount",)),
    *_calls(
        "mounts by descriptor (CVE-2022-0185)",
        ("fsopen", b"tmpfs", 0x8000), ("fsconfig", -1, 0, 0, 0, 0), ("fsmount", -1, 0, 0),
        ("fspick", -1, b"", 0x8000), ("move_mount", -1, b"", -1, b"", 0x8000),
        ("open_tree", -1, b"", 0x8000), ("mount_setattr", -1, b"", 0x8000, 0, 0),
        ("umount2", b"/nowhere/else", 0x8000), ("pivot_root", b"/nowhere", b"/nowhere"),
    ),
    *_calls(
        "the kernel's code",
        ("init_module", 0, 0, 0), ("finit_module", -1, 0, 0), ("delete_module", b"none", 0x800),
        ("kexec_load", 0, 99, 0, 0), ("kexec_file_load", -1, -1, 0, 0, 0), ("bpf", -1, 0, 0),
    ),
    *_calls(
        "calls with a record of bugs",
        ("io_uring_setup", 0, 0), ("io_uring_enter", -1, 0, 0, 0, 0),
        ("io_uring_register", -1, 0, 0, 0), ("userfaultfd", -1),
        ("perf_event_open", 0, 0, -1, -1, 0), ("keyctl", -1, 0), ("add_key", 0, 0, 0, 0, 0),
        ("request_key", 0, 0, 0, 0),
    ),
    *_calls(
        "files by handle (shocker)",
        ("open_by_handle_at", -1, 0, 0), ("name_to_handle_at", -1, 0, 0, 0, -1),
    ),
    *_calls(
        "the machine",
        ("reboot", 0, 0, 0, 0), ("swapon", 0, 0), ("swapoff", 0), ("settimeofday", 1, 0),
        ("clock_settime", 0, 0), ("acct", 1), ("quotactl", -1, 0, 0, 0), ("iopl", 4),
        ("ioperm", 0, 0, 1), ("syslog", 10, 0, 0), ("fanotify_init", -1, 0), ("vhangup",),
    ),
    Attempt("i386 int 0x80", "entries that a filter forgets", tries.i386),
    Attempt("x32", "entries that a filter forgets", tries.x32),
    *(
        Attempt(f"call {LAST + n}", "calls newer than the policy", tries.call_number(LAST + n))
        for n in (1, 100)
    ),
    *(
        Attempt(f"socket {name}", _SOCKETS, tries.socket(family, kind, protocol), ("socket",))
        for name, family, kind, protocol in (
            ("AF_ALG", 38, 5, 0), ("AF_RXRPC", 33, 2, 2), ("AF_VSOCK", 40, 1, 0),
            ("AF_KEY", 15, 3, 2), ("AF_XDP", 44, 3, 0), ("AF_BLUETOOTH", 31, 3, 1),
            ("AF_TIPC", 30, 2, 0), ("AF_CAN", 29, 3, 1), ("AF_PPPOX", 24, 1, 0),
            ("NETLINK_XFRM", 16, 3, 6), ("NETLINK_NETFILTER", 16, 3, 12),
            ("NETLINK_AUDIT", 16, 3, 9), ("NETLINK_KOBJECT_UEVENT", 16, 3, 15),
        )
    ),
    Attempt("socket AF_PACKET", "others' traffic", tries.socket(17, 3, 0x300), ("socket",)),
    Attempt("raw IPv4 socket", "others' traffic", tries.socket(2, 3, 255), grants=("net_raw",)),
    *(
        Attempt(name, "input for a terminal's readers", tries.terminal_call(command), ("ioctl",))
        for name, command in (
            ("TIOCSTI", policy.TIOCSTI), ("TIOCSTI with high bits", 1 << 32 | policy.TIOCSTI),
            ("TIOCLINUX", policy.TIOCLINUX), ("TIOCSETD", policy.TIOCSETD),
        )
    ),
    *(
        Attempt(f"device node {name}", "devices", tries.device_node(kind, number))
        for name, kind, number in (
            ("mem", stat.S_IFCHR, (1, 1)), ("kmsg", stat.S_IFCHR, (1, 11)),
            ("fuse", stat.S_IFCHR, (10, 229)), ("disk", stat.S_IFBLK, (8, 0)),
        )
    ),
    Attempt("devices below /dev", "devices", tries.device_nodes),
    Attempt("devices in the root tree", "devices", tries.devices_of_the_tree),
    Attempt("change the host's /dev/null", "devices", tries.hosts_devices),
    *(
        Attempt(f"write {path}", _WRITES, tries.write_to(path))
        for path in (
            "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
            "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches",
            "/proc/irq/default_smp_affinity", "/proc/sys/fs/binfmt_misc/register",
            "/sys/kernel/uevent_helper", "/sys/power/state",
        )
    ),
    *(
        Attempt(f"read {path}", _SPEAKS, tries.read(path))
        for path in (
            "/proc/kcore", "/proc/kallsyms", "/proc/kmsg", "/proc/keys", "/proc/timer_list",
            "/proc/cmdline", "/proc/modules", "/proc/acpi", "/proc/scsi", "/sys/firmware",
            "/sys/class", "/sys/fs/cgroup", "/dev/mem", "/dev/kmsg",
        )
    ),
    *(
        Attempt(f"{it} of process 1", _INIT, tries.read(f"/proc/1/{it}"), grants=("sys_ptrace",))
        for it in ("exe", "root", "cwd", "fd/0", "environ", "mem", "maps", "ns/mnt")
    ),
    *(
        Attempt(f"{name}() of process 1", _INIT, tries.call(name, *args), grants=("sys_ptrace",))
        for name, *args in (
            ("ptrace", 0x4206, 1, 0, 0), ("kcmp", 1, 1, 0, 0, 0),
        )
    ),
    Attempt("memory of process 1", _INIT, tries.init_memory, grants=("sys_ptrace",)),
    Attempt("a descriptor of process 1", _INIT, tries.init_descriptor, grants=("sys_ptrace",)),
    Attempt("climb out of a chroot", "walking up", tries.walk_up),
    Attempt("climb from process 1's root", "walking up", tries.init_root),
    Attempt("descriptors from outside", "leaks (CVE-2024-21626)", tries.passed_descriptors),
    Attempt("working directory outside", "leaks (CVE-2024-21626)", tries.directory),
    Attempt("control groups of the host", _SPEAKS, tries.control_groups),
    Attempt("file systems of the kernel", _SPEAKS, tries.kernel_file_systems),
    *(
        Attempt(f"{field} beyond the configuration", _LESS, tries.no_more_than(field))
        for field in ("CapBnd", "CapPrm", "CapEff")
    ),
    *(
        Attempt(f"any {field}", "capabilities that survive execve (CVE-2022-29162)", do)
        for field, do in (
            ("CapInh", tries.no_more_than("CapInh", none=True)),
            ("CapAmb", tries.no_more_than("CapAmb", none=True)),
        )
    ),
    Attempt("a process without a filter", _LESS, tries.filters, grants=("seccomp",)),
    Attempt("set-user-ID programs", _LESS, tries.set_user_id, grants=("no_new_privileges",)),
    Attempt("negative nice value", _MORE, tries.call("setpriority", 0, 0, -5), (), ("sys_nice",)),
    Attempt("real-time priority", _MORE, tries.fifo, grants=("sys_nice",)),
    Attempt("real-time input and output", _MORE, tries.call("ioprio_set", 1, 0, tries.RT_CLASS)),
    Attempt("a higher limit", _MORE, tries.raise_limit, grants=("sys_resource",)),
    Attempt("64 MiB of locked memory", _MORE, tries.lock_memory, grants=("ipc_lock",)),
    Attempt("set the host name", _MORE, tries.call("sethostname", 0, -1), grants=("sys_admin",)),
)
# fmt: on
