"""System V semaphores: semget(2). What a process will undo at its end is noted with it: semundo."""

from collections.abc import Mapping, Sequence

import msgspec

from ckpt.kinds import ipcabi, sysvipc
from ckpt.kinds.protocol import Dump, Workshop
from ckpt.kinds.sysvipc import Permissions


class PodState(msgspec.Struct, frozen=True):
    """A set of semaphores, with their values."""

    permissions: Permissions
    values: list[int]


class Semaphores(msgspec.Struct, frozen=True):
    """The semaphores of the pod whose init is *init_host_pid*: values by the number of the set."""

    init_host_pid: int
    values: Mapping[int, Sequence[int]]


def collect_pod(dump: Dump) -> list[PodState]:
    """See protocol.PodKind."""
    return _sets(dump.init_host_pid)


def semaphores(init_host_pid: int) -> Semaphores:
    """Return the semaphores of a frozen pod."""
    return Semaphores(init_host_pid, {s.permissions.id: s.values for s in _sets(init_host_pid)})


def _sets(host_pid: int) -> list[PodState]:
    with sysvipc.listing("sem", host_pid) as lines:
        return [
            PodState(sysvipc.permissions(line), ipcabi.semaphores(line["semid"], line["nsems"]))
            for line in lines
        ]


def rebuild_pod(state: PodState, workshop: Workshop) -> None:
    """See protocol.PodKind."""
    wanted, count = state.permissions, len(state.values)
    number = sysvipc.make(
        "sem", wanted, lambda flags: ipcabi.semget(wanted.key, count, flags), workshop
    )
    ipcabi.set_semaphores(number, state.values)
    ipcabi.sem_set(number, wanted.uid, wanted.gid, wanted.mode)
