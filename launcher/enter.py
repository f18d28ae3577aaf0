"""The way into a running pod, for those who place processes in it."""

from launcher.pods import Pod

NAMESPACES = ("mnt", "pid", "ipc", "uts", "net", "cgroup", "time")


def namespaces(pod: Pod) -> dict[str, int]:
    """Return open descriptors of the pod's namespaces, by their names in /proc/PID/ns.

    The caller owns and closes them; they are close-on-exec.
    """
    raise NotImplementedError


def join_cgroups(pod: Pod, pid: int) -> None:
    """Move process *pid* (host) with all its threads into the pod's control groups."""
    raise NotImplementedError


def pids(pod: Pod) -> list[int]:
    """Return the host pids of all processes of the pod but its init, zombies included."""
    raise NotImplementedError
