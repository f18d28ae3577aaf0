"""Who makes a request: asks /proc."""

import os


def pid_namespace(pid: int) -> str | None:
    """Return the pid namespace of a process or thread, or None where that cannot be known.

    Args:
        pid: as a FUSE request carries it: a thread id in the daemon's own pid namespace; 0 where
            the caller has none there.

    Source: namespaces(7), "The /proc/pid/ns/ directory".
    """
    if pid <= 0:
        return None
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def groups(pid: int) -> set[int]:
    """Return the supplementary groups of a process or thread, none where it has gone.

    Source: proc_pid_status(5), "Groups".
    """
    try:
        with open(f"/proc/{pid}/status") as file:
            found = next(line for line in file if line.startswith("Groups:"))
    except (OSError, StopIteration):
        return set()
    return {int(gid) for gid in found.split()[1:]}
