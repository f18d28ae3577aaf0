"""Shared anonymous memory: mmap(2) with MAP_SHARED and MAP_ANONYMOUS.

The kernel makes a nameless file for it (mm/shmem.c, shmem_zero_setup()), which is only ever mapped;
processes that inherited the mapping map the same file. So it goes through a checkpoint as an open
file without a descriptor.
"""

import ctypes
import mmap
import os

import msgspec

from ckpt.kinds.content import Content, collect_content, rebuild_content
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import PAGE_SIZE, OpenFile

_LINK = "/dev/zero (deleted)"


class State(msgspec.Struct, frozen=True):
    """What is in the memory; its size is that of the first mapping."""

    content: Content


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    del dump
    return source.fd < 0 and source.link == _LINK


def collect(source: Source, dump: Dump) -> State:
    """See protocol.FileKind. All who share the memory stand still."""
    fd = os.open(f"/proc/self/fd/{source.local_fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return State(collect_content(fd, source.stat.st_size, dump))
    finally:
        os.close(fd)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind.

    Map new shared memory, and take the kernel's file of it from /proc/PID/map_files.
    """
    del file
    size = max(-(-state.content.size // PAGE_SIZE), 1) * PAGE_SIZE
    with mmap.mmap(-1, size) as memory:
        view = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(view)
        del view  # or the memory could not be unmapped
        name = f"self/map_files/{start:x}-{start + size:x}"
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=workshop.host_proc_fd)
    rebuild_content(state.content, fd, workshop)
    return fd
