"""System V shared memory: shmget(2). Who has it attached, and where, is noted with his memory."""

import contextlib
import os
from collections.abc import Iterator

import msgspec

from ckpt.kinds import ipcabi, memfd, sysvipc
from ckpt.kinds.content import Content, collect_content, rebuild_content
from ckpt.kinds.protocol import Dump, Remote, Workshop
from ckpt.kinds.sysvipc import Permissions
from ckpt.model import PAGE_SIZE


class PodState(msgspec.Struct, frozen=True):
    """A segment.

    Attributes:
        permissions: number, key, owner.
        content: what is in it; its size is the segment's.
        locked: SHM_LOCK.
        removed: IPC_RMID: it goes with its last user.
    """

    permissions: Permissions
    content: Content
    locked: bool
    removed: bool


def collect_pod(dump: Dump) -> list[PodState]:
    """See protocol.PodKind."""
    found = []
    with sysvipc.listing("shm", dump.init_host_pid) as lines:
        for line in lines:
            wanted, mode = sysvipc.permissions(line), line["perms"]
            content = _content(wanted.id, line["size"], dump)
            if content is None:
                what = f"System V shared memory {wanted.id}"
                dump.refuse_pod(what, "it is of huge pages (SHM_HUGETLB)")
                continue
            locked, removed = bool(mode & ipcabi.SHM_LOCKED), bool(mode & ipcabi.SHM_DEST)
            found.append(PodState(wanted, content, locked, removed))
    return found


def rebuild_pod(state: PodState, workshop: Workshop) -> None:
    """See protocol.PodKind."""
    wanted, size = state.permissions, state.content.size
    number = sysvipc.make(
        "shm", wanted, lambda flags: ipcabi.shmget(wanted.key, size, flags), workshop
    )
    os.fchdir(workshop.host_proc_fd)
    try:
        with _attached(number, size, os.O_RDWR, ".") as fd:
            if fd is not None:
                rebuild_content(state.content, fd, workshop)
    finally:
        os.chdir("/")
    ipcabi.shm_set(number, wanted.uid, wanted.gid, wanted.mode)
    if state.locked:
        ipcabi.shmctl(number, ipcabi.SHM_LOCK)


def finish_pod(state: PodState, remote: Remote) -> None:
    """See protocol.FinishingPodKind: now that its users have attached it, it can be removed."""
    if state.removed:
        remote.syscall("shmctl", state.permissions.id, ipcabi.IPC_RMID, 0)


def _content(number: int, size: int, dump: Dump) -> Content | None:
    """Return what is in a segment of our ipc namespace; None if it is of huge pages."""
    if dump.looking_only:
        return Content(size, [])
    with _attached(number, size, os.O_RDONLY, "/proc") as fd:
        usual = fd is not None and os.fstat(fd).st_dev == dump.once("memfd", memfd.device)
        return collect_content(fd, size, dump) if fd is not None and usual else None


@contextlib.contextmanager
def _attached(number: int, size: int, flags: int, proc: str) -> Iterator[int | None]:
    """Give the kernel's file of a segment; None if its pages are not of the usual size.

    Only who has it attached can open it, through the /proc at *proc*.
    """
    address = ipcabi.shmat(number, 0 if flags & os.O_RDWR else ipcabi.SHM_RDONLY)
    end = address + -(-size // PAGE_SIZE) * PAGE_SIZE
    try:
        path = f"{proc}/self/map_files/{address:x}-{end:x}"
        fd = os.open(path, flags | os.O_CLOEXEC) if os.path.lexists(path) else None
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)
    finally:
        ipcabi.shmdt(address)
