"""The monitor: the process of a pod that keeps the masters of its terminals open."""

from launcher.places import Places


def give_console(places: Places, pod_name: str, index: int, master_fd: int) -> None:
    """Hand the master of the pod's terminal `/dev/pts/INDEX` to its monitor.

    The monitor is started if there is none. It duplicates *master_fd*; the caller still owns it.
    """
    raise NotImplementedError
