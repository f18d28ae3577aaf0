"""The way into a running pod, for those who place processes in it."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress

from launcher.errors import PodError

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Final

    from launcher.entrance import Entrance
    from launcher.pods import Pod

NAMESPACES: Final = ("mnt", "pid", "ipc", "uts", "net", "cgroup", "time")
"""The namespaces of a pod, as /proc/PID/ns names them."""


def namespaces(pod: Pod) -> dict[str, int]:
    """Return open descriptors of the pod's namespaces, by their names in /proc/PID/ns.

    The caller owns and closes them; they are close-on-exec.

    Raises:
        PodError: the pod has ended.
        OSError: a namespace cannot be opened.
    """
    opened: dict[str, int] = {}
    try:
        for name in NAMESPACES:
            path = f"/proc/{pod.init_pid}/ns/{name}"
            opened[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        check_alive(pod)
    except BaseException:
        for fd in opened.values():
            os.close(fd)
        raise
    return opened


def pidfd(pod: Pod | Entrance) -> int:
    """Return a pidfd of the pod's init, which stands for all its namespaces in setns(2).

    Raises:
        PodError: the pod has ended.
    """
    try:
        fd = os.pidfd_open(pod.init_pid)
    except ProcessLookupError as e:
        raise PodError(f"pod {pod.name!r} has ended") from e
    try:
        check_alive(pod)
    except PodError:
        os.close(fd)
        raise
    return fd


@contextmanager
def network(pod: Pod) -> Iterator[None]:
    """Have the calling thread be in the pod's network namespace for a while.

    Raises:
        OSError: the namespace cannot be opened.
    """
    from launcher import wall

    fd = os.open(f"/proc/{pod.init_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with wall.inside(fd):
            yield
    finally:
        os.close(fd)


def check_alive(pod: Pod | Entrance) -> None:
    """Make sure that what was opened through the init's pid before is the pod's.

    Raises:
        PodError: the init has ended; its pid may be somebody else's by now.
    """
    if start_time(pod.init_pid) != pod.init_start:
        raise PodError(f"pod {pod.name!r} has ended")


def start_time(pid: int) -> int:
    """Return when process *pid* started, in clock ticks since boot; 0 if it is dead or a zombie.

    Source: proc_pid_stat(5), fields 3 and 22; the second, in parentheses, may hold anything.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat.rpartition(b")")[2].split()
    return 0 if fields[0] in b"ZX" else int(fields[19])


def open_control_groups(paths: Sequence[str | Path]) -> list[int]:
    """Return `cgroup.procs` of each group, open for writing; the caller closes them.

    The kernel judges a write by who opened the file, and a process may write "0" for itself:
    that is how a process joins that cannot see the groups any more.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    return [os.open(f"{path}/cgroup.procs", flags) for path in paths]


def join_control_groups(cgroup_fds: Sequence[int]) -> None:
    """Move the calling process into the groups whose `cgroup.procs` are open as *cgroup_fds*.

    Raises:
        OSError: EINVAL for a process with real-time scheduling and a v1 group with controller
            `cpu` (tried on 6.18 with CONFIG_RT_GROUP_SCHED).
    """
    for fd in cgroup_fds:
        try:
            os.write(fd, b"0")
        except OSError as e:
            reason = " (real-time scheduling?)" if e.errno == errno.EINVAL else ""
            raise OSError(e.errno, f"cannot join a control group: {e.strerror}{reason}") from e


def join_cgroups(pod: Pod, pid: int) -> None:
    """Move process *pid* (host) with all its threads into the pod's control groups."""
    for path in pod.cgroups:
        (path / "cgroup.procs").write_text(str(pid))


def pids(pod: Pod) -> list[int]:
    """Return the host pids of all processes of the pod but its init, zombies included.

    They are found by their pid namespace: control groups do not list zombies. If the init has
    ended since the pod was found, they all have: the kernel reaps it last.

    Source: kernel/pid_namespace.c, zap_pid_ns_processes().
    """
    try:
        namespace = os.readlink(f"/proc/{pod.init_pid}/ns/pid")
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = []
    for name in os.listdir("/proc"):  # the whole host's, while a pod may stand still: be quick
        if name.isdecimal() and int(name) != pod.init_pid:
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.append(int(name))
    return sorted(found)
