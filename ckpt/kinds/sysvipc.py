"""What the three kinds of System V IPC have in common: sysvipc(7).

An object belongs to no process and has a number that programs keep. The kernel lists them in
/proc/sysvipc, and takes the number of the next one from /proc/sys/kernel/{shm,sem,msg}_next_id.
Lost are times, and the ids of the processes that used an object last.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ckpt.kinds import ipcabi
from ckpt.kinds.acting import acting_as
from ckpt.kinds.protocol import Workshop


class Permissions(msgspec.Struct, frozen=True):
    """What each object has.

    Attributes:
        id: its number.
        key: as given to shmget(2) and the like; 0 for IPC_PRIVATE.
        uid, gid: owner.
        cuid, cgid: creator.
        mode: of the access, nine bits.
    """

    id: int
    key: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    mode: int


@contextlib.contextmanager
def listing(kind: str, host_pid: int) -> Iterator[list[dict[str, int]]]:
    """Give the lines of /proc/sysvipc/KIND, inside the ipc namespace of *host_pid*."""
    with ipcabi.inside(host_pid):
        yield parse(Path(f"/proc/sysvipc/{kind}").read_text())


def parse(text: str) -> list[dict[str, int]]:
    """Return the lines of a file of /proc/sysvipc by the names in its first line. Pure.

    Source: proc_sysvipc_shm(5) and the like; perms is octal.
    """
    head, *lines = (line.split() for line in text.splitlines())
    return [
        {
            name: int(word, 8 if name == "perms" else 10)
            for name, word in zip(head, line, strict=True)
        }
        for line in lines
    ]


def permissions(line: dict[str, int]) -> Permissions:
    """Return what a line says of owner and access."""
    number = next(line[name] for name in ("shmid", "semid", "msqid") if name in line)
    return Permissions(
        id=number,
        key=line["key"],
        uid=line["uid"],
        gid=line["gid"],
        cuid=line["cuid"],
        cgid=line["cgid"],
        mode=line["perms"] & 0o777,
    )


def make(kind: str, wanted: Permissions, get: Callable[[int], int], workshop: Workshop) -> int:
    """Make an object with the number and the creator that it had; return the number.

    Args:
        kind: "shm", "sem" or "msg".
        wanted: what it is to have.
        get: makes it with the flags given.
        workshop: where.

    Raises:
        OSError: the kernel does not let us choose numbers (CONFIG_CHECKPOINT_RESTORE).
        ValueError: the number is taken.
    """
    name = f"sys/kernel/{kind}_next_id"
    next_fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=workshop.host_proc_fd)
    try:
        os.write(next_fd, str(wanted.id).encode())
    finally:
        os.close(next_fd)
    with acting_as(wanted.cuid, wanted.cgid):
        number = get(wanted.mode | ipcabi.IPC_CREAT | ipcabi.IPC_EXCL)
    if number != wanted.id:
        raise ValueError(f"System V object {wanted.id} ({kind}) became number {number}")
    return number
