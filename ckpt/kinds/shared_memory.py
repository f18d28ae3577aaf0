"""Shared anonymous memory: mmap(2) with MAP_SHARED and MAP_ANONYMOUS.

The kernel makes a nameless file for it (mm/shmem.c, shmem_zero_setup()), which is only ever mapped;
processes that inherited the mapping map the same file. So it goes through a checkpoint as an open
file without a descriptor.
"""

import ctypes
import mmap
import os

import msgspec

from ckpt.kinds import hugepages
from ckpt.kinds.content import Content, collect_content, rebuild_content
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import PAGE_SIZE, OpenFile

_LINKS = ("/dev/zero (deleted)", hugepages.ANONYMOUS)


class State(msgspec.Struct, frozen=True):
    """What is in the memory; its size is that of the first mapping.

    Attributes:
        huge: bytes of a page, where they are huge ones.
    """

    content: Content
    huge: int = 0


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    del dump
    return source.fd < 0 and source.link in _LINKS


def collect(source: Source, dump: Dump) -> State:
    """See protocol.FileKind. All who share the memory stand still."""
    fd = os.open(f"/proc/self/fd/{source.local_fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        huge, size = hugepages.size_of(fd), source.stat.st_size
        if huge:
            return State(hugepages.collect_content(fd, size, dump), huge)
        return State(collect_content(fd, size, dump))
    finally:
        os.close(fd)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind.

    Map new shared memory, and take the kernel's file of it from /proc/PID/map_files.
    """
    del file
    size = max(-(-state.content.size // PAGE_SIZE), 1) * PAGE_SIZE
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | hugepages.map_flags(state.huge)
    with mmap.mmap(-1, size, flags) as memory:
        view = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(view)
        del view  # or the memory could not be unmapped
        name = f"self/map_files/{start:x}-{start + size:x}"
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=workshop.host_proc_fd)
    if state.huge:
        hugepages.rebuild_content(state.content, fd, workshop)
    else:
        rebuild_content(state.content, fd, workshop)
    return fd
