"""What to do to build a pod, decided without touching the kernel.

plan() turns a configuration into steps; launcher.execute takes them in order. A step is data: it
can be compared in a test, printed by --dry-run, and named when it fails. (msgspec's structures
are defined ten times faster than dataclasses, which every start would feel.)
"""

from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from launcher import policy
from launcher.config import PodConfig


class JoinNetwork(Struct, frozen=True):
    """Enter the network namespace that is kept at *path*."""

    path: str

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"join the network namespace {self.path}"


class NewNamespaces(Struct, frozen=True):
    """Enter new namespaces; *names* as in /proc/PID/ns."""

    names: tuple[str, ...]

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"make namespaces: {', '.join(self.names)}"


class SetHostName(Struct, frozen=True):
    """Name the pod."""

    name: str

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"set the host name {self.name}"


class SetClocks(Struct, frozen=True):
    """Set the clocks of the new time namespace ahead of the host's, in nanoseconds."""

    monotonic_ns: int
    boottime_ns: int

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"set clocks: monotonic {self.monotonic_ns:+} ns, boottime {self.boottime_ns:+} ns"


class TakeRoot(Struct, frozen=True):
    """Make the directory *path* a mount of its own; later targets are below it."""

    path: str

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"take {self.path} as the root"


class JoinUsers(Struct, frozen=True):
    """Become root in the user namespace of the network namespace, whose ids begin at *base*.

    From there on nothing of the host's can be done any more.
    """

    base: int

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"be root in the user namespace of the network: user 0 is the host's {self.base}"


class Pivot(Struct, frozen=True):
    """Make the taken root the root of the mount namespace and detach everything else."""

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return "pivot into the root and detach the old one"


class Directory(Struct, frozen=True):
    """A directory in a new file system."""

    name: str
    mode: int = 0o755


class Device(Struct, frozen=True):
    """A character device in a new file system, for everybody to read and write."""

    name: str
    major: int
    minor: int


class Symlink(Struct, frozen=True):
    """A symbolic link in a new file system."""

    name: str
    to: str


Entry = Directory | Device | Symlink


class FileSystem(Struct, frozen=True):
    """Mount a new file system on *target*, with *entries* in it before anybody can see it.

    Attributes:
        fstype: type as in /proc/filesystems.
        options: parameters of the type.
        attributes: "ro", "nosuid", "nodev", "noexec".
        owner: user and group of what is in it, and of itself.
    """

    fstype: str
    target: str
    options: tuple[tuple[str, str], ...] = ()
    attributes: tuple[str, ...] = ("nosuid", "nodev", "noexec")
    entries: tuple[Entry, ...] = ()
    owner: int = 0

    def describe(self) -> str:
        """Return the step as one line for a person."""
        words = [*self.attributes, *(f"{k}={v}" if v else k for k, v in self.options)]
        names = " ".join(entry.name for entry in self.entries)
        inside = f" with {names}" if names else ""
        owner = f", of user {self.owner}" if self.owner else ""
        return f"mount {self.fstype} on {self.target} ({','.join(words)}){inside}{owner}"


class BindReadOnly(Struct, frozen=True):
    """Show directory or file *source* of the host, if it exists, read-only on *target*."""

    source: str
    target: str

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"bind {self.source} on {self.target} (read-only)"


class ReadOnly(Struct, frozen=True):
    """Make what is at *target*, if anything, read-only."""

    target: str

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"make {self.target} read-only"


class Mask(Struct, frozen=True):
    """Hide what is at *target*, if anything: an empty directory, or the null device."""

    target: str

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return f"mask {self.target}"


class JoinControlGroups(Struct, frozen=True):
    """Enter the pod's control groups."""

    def describe(self) -> str:
        """Return the step as one line for a person."""
        return "join the control groups"


Step = (
    JoinNetwork
    | NewNamespaces
    | SetHostName
    | SetClocks
    | JoinUsers
    | TakeRoot
    | Pivot
    | FileSystem
    | BindReadOnly
    | ReadOnly
    | Mask
    | JoinControlGroups
)


class Plan(Struct, frozen=True):
    """How a pod is made.

    Attributes:
        outside: steps of a process in the host's pid namespace: the barrier lets nobody else
            come near the root.
        inside: steps of the pod's first process, for what belongs to its pid namespace.
    """

    outside: tuple[Step, ...]
    inside: tuple[Step, ...]

    def describe(self) -> list[str]:
        """Return the plan as lines for a person."""
        return [step.describe() for step in (*self.outside, *self.inside)]


DEVICES: Final = FileSystem(
    "tmpfs",
    "/dev",
    (("mode", "0755"), ("size", "64k")),
    ("nosuid", "noexec"),
    (
        Directory("pts"),
        Directory("shm"),
        *(Device(name, *number) for name, number in policy.DEVICES.items()),
        Symlink("ptmx", "pts/ptmx"),
        Symlink("fd", "/proc/self/fd"),
        Symlink("stdin", "/proc/self/fd/0"),
        Symlink("stdout", "/proc/self/fd/1"),
        Symlink("stderr", "/proc/self/fd/2"),
    ),
)

TERMINALS: Final = FileSystem(
    "devpts",
    "/dev/pts",
    (("gid", "5"), ("mode", "0620"), ("ptmxmode", "0666")),
    ("nosuid", "noexec"),
)
"""Every mount of devpts is an instance of its own (Documentation/filesystems/devpts.rst)."""

SHARED_MEMORY: Final = FileSystem("tmpfs", "/dev/shm", (("mode", "1777"),))  # noqa: S108 (of the pod)

SYSTEM: Final = FileSystem(
    "tmpfs",
    "/sys",
    (("mode", "0755"), ("size", "4k")),
    ("nosuid", "nodev", "noexec", "ro"),
    tuple(
        map(Directory, ("devices", "devices/system", "devices/system/cpu", "devices/system/node"))
    ),
)
"""Of sysfs programs see only what processors and memory there are."""

READ_ONLY: Final = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
MASKED: Final = (
    "/proc/acpi", "/proc/asound", "/proc/cmdline", "/proc/config.gz", "/proc/driver",
    "/proc/dynamic_debug", "/proc/interrupts", "/proc/iomem", "/proc/ioports", "/proc/kallsyms",
    "/proc/kcore", "/proc/key-users", "/proc/keys", "/proc/kmsg", "/proc/kpagecgroup",
    "/proc/kpagecount", "/proc/kpageflags", "/proc/latency_stats", "/proc/modules", "/proc/mtrr",
    "/proc/pagetypeinfo", "/proc/sched_debug", "/proc/scsi", "/proc/slabinfo", "/proc/timer_list",
    "/proc/timer_stats", "/proc/vmallocinfo",
)  # fmt: skip
"""What speaks of the host's kernel and hardware rather than of the pod."""


def plan(
    config: PodConfig,
    root: Path,
    network: Path,
    clocks: tuple[int, int] = (0, 0),
    hosts: Path | None = None,
    base: int | None = None,
) -> Plan:
    """Return how to make the pod of *config*.

    Args:
        config: of the pod.
        root: the mounted root directory.
        network: where the pod's network namespace is kept.
        clocks: what its monotonic and boottime clocks are ahead of the host's, in nanoseconds.
        hosts: file to be its /etc/hosts.
        base: the first of its users on the host, if it has a user namespace. That then has what a
            capability of the pod can be about: the network, and System V IPC.
    """
    users: tuple[Step, ...] = ()
    ours: tuple[str, ...] = ("uts", "ipc", "mnt", "time", "pid")
    if base is not None:
        ours = ("uts", "mnt", "time", "pid")
        users = (JoinUsers(base), NewNamespaces(("ipc",)))
    outside: list[Step] = [
        JoinNetwork(str(network)),
        NewNamespaces(ours),
        SetHostName(config.host_name),
    ]
    if clocks != (0, 0):
        outside.append(SetClocks(*clocks))
    outside.append(TakeRoot(str(root)))
    outside += [_of(base or 0, fs) for fs in (DEVICES, TERMINALS, SHARED_MEMORY, SYSTEM)]
    outside += [BindReadOnly(path, path) for path in _topology()]
    if hosts is not None:
        outside.append(BindReadOnly(str(hosts), "/etc/hosts"))
    inside: list[Step] = [
        JoinControlGroups(),
        NewNamespaces(("cgroup",)),
        FileSystem("proc", "/proc"),
        *map(ReadOnly, READ_ONLY),
        *map(Mask, MASKED),
        *users,
    ]
    return Plan((*outside, Pivot()), tuple(inside))


def _of(owner: int, fs: FileSystem) -> FileSystem:
    """Return *fs* as that of a pod whose root is the user *owner* of the host."""
    options = {k: str(owner + int(v)) if k == "gid" else v for k, v in fs.options}
    return msgspec.structs.replace(fs, options=tuple(options.items()), owner=owner)


def _topology() -> tuple[str, ...]:
    return tuple(f"/sys/devices/system/{name}" for name in ("cpu", "node"))
