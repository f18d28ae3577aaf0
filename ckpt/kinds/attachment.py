"""Where a process has attached System V shared memory: shmop(2).

An attached segment is a mapping of a file of the kernel's own, whose inode number is the segment's
(ipc/shm.c, newseg()). Only shmat(2) makes a mapping that counts as a user of the segment.
"""

import functools
import os

import msgspec

from ckpt import procfs
from ckpt.kinds import ipcabi, memfd
from ckpt.kinds.stages import Target
from ckpt.model import PAGE_SIZE


class Attachment(msgspec.Struct, frozen=True):
    """Of which attached segment a mapping is a part.

    Attributes:
        segment: its number (sysvshm.PodState).
        base: the address at which it was attached.
        size: of the segment, in bytes.
        writable: may the mapping be made writable? Not after SHM_RDONLY.
    """

    segment: int
    base: int
    size: int
    writable: bool


def of(m: procfs.Mapping, host_pid: int) -> Attachment | None:
    """Return the attachment that *m* is part of; None if it is of no segment."""
    if not m.name.startswith(b"/SYSV") or m.device != _device():
        return None
    size = os.stat(f"/proc/{host_pid}/map_files/{m.link}").st_size
    return Attachment(m.inode, m.start - m.offset, size, "mw" in m.flags)


def attach(parts: dict[Attachment, list[tuple[int, int, int]]], target: Target) -> None:
    """Attach segments, and unmap of them what was unmapped.

    Args:
        parts: of each attachment what is mapped, ascending: start, end, protection.
        target: the process.
    """
    call = target.remote.later
    for attachment, mapped in parts.items():
        mode = 0 if attachment.writable else ipcabi.SHM_RDONLY
        at = attachment.base
        call("shmat", attachment.segment, at, mode)
        end = at + -(-attachment.size // PAGE_SIZE) * PAGE_SIZE
        for start, stop, _ in [*mapped, (end, end, 0)]:
            if start > at:
                call("munmap", at, start - at)
            at = stop
        for start, stop, protection in mapped:
            call("mprotect", start, stop - start, protection)


@functools.cache
def _device() -> str:
    """Return the device of the kernel's own tmpfs, as /proc/PID/maps writes it."""
    device = memfd.device()
    return f"{os.major(device):02x}:{os.minor(device):02x}"
