"""The way into a running pod, for those who place processes in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from launcher import wall
from launcher.errors import PodError
from launcher.pods import Pod, start_time

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


def pidfd(pod: Pod) -> int:
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
    fd = os.open(f"/proc/{pod.init_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with wall.inside(fd):
            yield
    finally:
        os.close(fd)


def check_alive(pod: Pod) -> None:
    """Make sure that what was opened through the init's pid before is the pod's.

    Raises:
        PodError: the init has ended; its pid may be somebody else's by now.
    """
    if start_time(pod.init_pid) != pod.init_start:
        raise PodError(f"pod {pod.name!r} has ended")


def join_cgroups(pod: Pod, pid: int) -> None:
    """Move process *pid* (host) with all its threads into the pod's control groups."""
    for path in pod.cgroups:
        (path / "cgroup.procs").write_text(str(pid))


def pids(pod: Pod) -> list[int]:
    """Return the host pids of all processes of the pod but its init, zombies included.

    They are found by their pid namespace: control groups do not list zombies.
    """
    namespace = os.readlink(f"/proc/{pod.init_pid}/ns/pid")
    found = []
    for name in os.listdir("/proc"):  # the whole host's, while a pod may stand still: be quick
        if name.isdecimal() and int(name) != pod.init_pid:
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.append(int(name))
    return sorted(found)
