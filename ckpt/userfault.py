"""userfaultfd(2) over the memory of another process: what it says, and what it is told.

Each process has one such descriptor. It is made in the process, because it belongs to its memory,
and taken out of it at once. Who changes its memory (fork(2), mremap(2), madvise(2), munmap(2)) has
done it when the kernel tells; he waits until what it tells was read, and meanwhile the kernel
copies nothing into any of that memory.

Source: Documentation/admin-guide/mm/userfaultfd.rst; fs/userfaultfd.c.
"""

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckpt import abi
from ckpt.arch import x86_64 as arch
from ckpt.kinds.abi import pidfd_open
from ckpt.model import PAGE_SIZE
from ckpt.remote import Remote

FEATURES: Final = (
    abi.UFFD_FEATURE_EVENT_FORK
    | abi.UFFD_FEATURE_EVENT_REMAP
    | abi.UFFD_FEATURE_EVENT_REMOVE
    | abi.UFFD_FEATURE_EVENT_UNMAP
)
MESSAGE: Final = struct.Struct("<B7xQQQ")
"""struct uffd_msg: what happened, and up to three words that depend on it."""


class Fault(Struct, frozen=True):
    """A thread waits for the page at *address*."""

    address: int


class Fork(Struct, frozen=True):
    """The process has a child now, whose descriptor is *fd*: the reader's."""

    fd: int


class Remap(Struct, frozen=True):
    """*length* bytes from *source* on are at *to* now."""

    source: int
    to: int
    length: int


class Remove(Struct, frozen=True):
    """*start* to *end* is to be zeros (MADV_DONTNEED and its like)."""

    start: int
    end: int


class Unmap(Struct, frozen=True):
    """*start* to *end* is mapped no more; something else may be there by now."""

    start: int
    end: int


Change = Fork | Remap | Remove | Unmap
Message = Fault | Change


class Changing(Exception):  # noqa: N818 (a state of the memory, which the caller waits out)
    """The memory is being changed: there is a message to be read, or soon will be."""


class NotThere(Exception):  # noqa: N818 (as it is)
    """There is no such memory of that descriptor at the address, or not for all of the length."""


class Gone(Exception):  # noqa: N818 (as it is)
    """Nobody has that memory any more."""


def is_there() -> bool:
    """Can this kernel, and this process, do all that is needed?"""
    try:
        fd = abi.syscall("userfaultfd", arch.SYSCALLS["userfaultfd"], os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _agree(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _agree(fd: int) -> None:
    abi.ioctl(fd, abi.UFFDIO_API, abi.uffdio_api(abi.UFFD_API, FEATURES))


def watch(remote: Remote) -> int:
    """Return a descriptor for the memory of a process that is being made. The caller owns it.

    The kernel itself may wait for pages there, too, in read(2) for instance; that needs
    CAP_SYS_PTRACE in the process, which it has not given up yet.

    Raises:
        OSError: the kernel cannot do it.
    """
    there = remote.syscall("userfaultfd", os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fd = take_out(remote.tracee.tid, there)
    finally:
        remote.syscall("close", there)
    try:
        _agree(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def take_out(tid: int, there: int) -> int:
    """Return a duplicate of descriptor *there* of thread *tid*."""
    pidfd = pidfd_open(tid)
    try:
        return abi.pidfd_getfd(pidfd, there)
    finally:
        os.close(pidfd)


def register(fd: int, start: int, length: int) -> None:
    """Have who touches a page that is not there wait for it."""
    wanted = abi.uffdio_register(start, length, abi.UFFDIO_REGISTER_MODE_MISSING)
    abi.ioctl(fd, abi.UFFDIO_REGISTER, wanted)


def read(fd: int, place: memoryview) -> Message | None:
    """Return a message, None if there is none. Who has caused it, unless by a fault, goes on.

    Faults come first, whatever has happened earlier.

    Args:
        fd: the descriptor.
        place: what is read is there, too: as long as MESSAGE, filled with zeros.
    """
    try:
        os.readv(fd, [place])
    except BlockingIOError:
        return None
    return parse(place)


def parse(data: bytes | memoryview) -> Message | None:
    """Return the message that *data* begins with; None: none was read there."""
    kind, first, second, third = MESSAGE.unpack_from(data)
    match kind:
        case 0:
            return None
        case abi.UFFD_EVENT_PAGEFAULT:
            return Fault(second & -PAGE_SIZE)
        case abi.UFFD_EVENT_FORK:
            return Fork(first & 0xFFFF_FFFF)
        case abi.UFFD_EVENT_REMAP:
            return Remap(first, second, third)
        case abi.UFFD_EVENT_REMOVE:
            return Remove(first, second)
        case abi.UFFD_EVENT_UNMAP:
            return Unmap(first, second)
    raise OSError(errno.EPROTO, f"userfaultfd: message {kind:#x}")


def is_changing(fd: int) -> bool:
    """Is the memory being changed? From before a change until what is told of it was read.

    The kernel looks for that before it looks at the range, which is none.

    Source: fs/userfaultfd.c, userfaultfd_copy().
    """
    nothing = abi.uffdio_copy()
    address = ctypes.addressof(nothing)
    return abi.ioctl_errno(fd, abi.UFFDIO_COPY, address) == errno.EAGAIN


def has(fd: int, address: int) -> bool:
    """Is there memory of that descriptor at *address*? Nothing is written.

    The content would come from where nothing is, which the kernel sees when it has found whereto.

    Raises:
        Changing, Gone: so it cannot be told, or never.
    """
    nothing = abi.uffdio_copy(address, _NOWHERE, PAGE_SIZE)
    error = abi.ioctl_errno(fd, abi.UFFDIO_COPY, ctypes.addressof(nothing))
    if error in {errno.EAGAIN, errno.ESRCH}:
        _fail(error)
    return error in {errno.EFAULT, errno.EEXIST}


_NOWHERE: Final = 0x10  # below vm.mmap_min_addr
_TASK_SIZE: Final = (1 << 47) - PAGE_SIZE
"""Where addresses end: arch/x86/include/asm/page_64_types.h, TASK_SIZE_MAX."""


def copy(fd: int, address: int, data: bytes, offset: int, length: int) -> int:
    """Make pages of *data* from *offset* on appear at *address*; who waits for them goes on.

    Returns:
        How many bytes there are now; more than 0.

    Raises:
        FileExistsError: the first page is there already.
        NotThere: nothing was copied.
        Changing: nothing was copied, read the messages.
        Gone: the process has ended or executed another program.
        OSError: ENOMEM.
    """
    source = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
    argument = abi.uffdio_copy(address, source + offset, length)
    error = abi.ioctl_errno(fd, abi.UFFDIO_COPY, ctypes.addressof(argument))
    if error and argument.copy <= 0:
        _fail(error)
    return int(argument.copy)


def clear(fd: int, address: int) -> None:
    """Make a page of zeros appear at *address*; who waits for it goes on.

    Raises:
        as copy().
    """
    argument = abi.uffdio_zeropage(address, PAGE_SIZE)
    if error := abi.ioctl_errno(fd, abi.UFFDIO_ZEROPAGE, ctypes.addressof(argument)):
        _fail(error)


def wake(fd: int, address: int) -> None:
    """Have who waits for a page look again."""
    _wake(fd, address, address + PAGE_SIZE)


def wake_all(fd: int) -> None:
    """Have all who wait for any page look again."""
    least = int(Path("/proc/sys/vm/mmap_min_addr").read_text())
    _wake(fd, max(PAGE_SIZE, least + PAGE_SIZE - 1 & -PAGE_SIZE), _TASK_SIZE)


def _wake(fd: int, start: int, end: int) -> None:
    argument = abi.uffdio_range(start, end - start)
    abi.ioctl_errno(fd, abi.UFFDIO_WAKE, ctypes.addressof(argument))


def _fail(error: int) -> None:
    match error:
        case errno.EAGAIN:
            raise Changing
        case errno.ENOENT | errno.EINVAL:
            raise NotThere
        case errno.ESRCH:
            raise Gone
    raise OSError(error, f"userfaultfd: {os.strerror(error)}")
