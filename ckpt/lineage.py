"""Who is whose child, in which group and session, by the numbers that the pod has. Pure."""

from collections.abc import Mapping

from msgspec import Struct

from ckpt import plan, procfs


class Lineage(Struct, frozen=True):
    """A process among those of its pod; all ids are the pod's.

    Attributes:
        pid: its own.
        parent: its parent's; that of the pod's init where that is none of the processes.
        group: of its process group.
        session: of its session.
    """

    pid: int
    parent: int
    group: int
    session: int


def lineages(statuses: Mapping[int, dict[str, str]]) -> dict[int, Lineage]:
    """Return where each process stands.

    Args:
        statuses: fields of /proc/PID/status, of any thread of each, by host pid.

    Source: proc(5), NStgid, NSpgid, NSsid: the innermost namespace comes last.
    """
    numbers = {pid: procfs.inner_pid(status, "NStgid") for pid, status in statuses.items()}
    return {
        pid: Lineage(
            pid=numbers[pid],
            parent=numbers.get(int(status["PPid"]), plan.INIT),
            group=procfs.inner_pid(status, "NSpgid"),
            session=procfs.inner_pid(status, "NSsid"),
        )
        for pid, status in statuses.items()
    }
