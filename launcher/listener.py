"""Listeners of system-call filters: seccomp_unotify(2).

A leaf beside launcher.abi. A filter that answers calls with NOTIFY has one listener, a descriptor,
for all processes that have inherited the filter; it hangs up when the last of them has ended.

A call that was received from a listener and not answered stays with its caller: nobody can receive
it again. So a call is received into a *slot*, in memory that outlives the receiver: the kernel
itself writes it there before the receiver goes on, and whoever comes after finds it.
"""

import ctypes
import errno
import mmap
import os
import select
from ctypes import c_int, c_int32, c_int64, c_long, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Final

from launcher import abi
from launcher.syscalls import NUMBERS

# <linux/seccomp.h>
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 32
SECCOMP_IOCTL_NOTIF_RECV: Final = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND: Final = 0xC0182101
SECCOMP_IOCTL_NOTIF_ID_VALID: Final = 0x40082102

SLOTS: Final = 4096
"""More than there are listeners at a time: launcher.holding uses them in turn."""


class seccomp_data(ctypes.Structure):  # noqa: N801 (the kernel's name)
    """A system call: see launcher.seccomp. Source: include/uapi/linux/seccomp.h."""

    _fields_ = (
        ("nr", c_int),
        ("arch", c_uint32),
        ("instruction_pointer", c_uint64),
        ("args", c_uint64 * 6),
    )


class seccomp_notif(ctypes.Structure):  # noqa: N801
    """A call and who makes it. *pid* is a thread, as the receiver's pid namespace numbers it.

    Source: include/uapi/linux/seccomp.h.
    """

    _fields_ = (("id", c_uint64), ("pid", c_uint32), ("flags", c_uint32), ("data", seccomp_data))


class seccomp_notif_resp(ctypes.Structure):  # noqa: N801
    """What the call returns: *error*, a negative errno, or *val*.

    Source: include/uapi/linux/seccomp.h.
    """

    _fields_ = (("id", c_uint64), ("val", c_int64), ("error", c_int32), ("flags", c_uint32))


class _iovec(ctypes.Structure):  # noqa: N801
    _fields_ = (("iov_base", c_void_p), ("iov_len", c_size_t))


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = c_long
_libc.process_vm_readv.restype = c_long


def install(program: bytes) -> int:
    """Install *program* as a filter of the calling thread; return its listener, close-on-exec.

    A call that was received then waits until it is answered, whatever signals come but a fatal
    one, so that it is not begun a second time (WAIT_KILLABLE_RECV, since Linux v5.19; before, a
    signal may restart it).

    Raises:
        OSError: as seccomp(2); EBUSY if a filter of the thread has a listener already.
    """
    filters = (abi.sock_filter * (len(program) // 8)).from_buffer_copy(program)
    fprog = abi.sock_fprog(len(filters), filters)
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    try:
        return _seccomp(flags, fprog)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return _seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER, fprog)


def _seccomp(flags: int, fprog: abi.sock_fprog) -> int:
    number = NUMBERS[os.uname().machine]["seccomp"]
    operation = c_uint(SECCOMP_SET_MODE_FILTER)
    result = _libc.syscall(c_long(number), operation, c_uint(flags), ctypes.byref(fprog))
    return _checked("seccomp", result)


class Slots:
    """The slots, in memory that *fd* stands for."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SLOTS * ctypes.sizeof(seccomp_notif))

    @staticmethod
    def create() -> int:
        """Return a descriptor for fresh slots, close-on-exec; the caller owns it."""
        fd = os.memfd_create("slots", os.MFD_CLOEXEC)
        os.ftruncate(fd, SLOTS * ctypes.sizeof(seccomp_notif))
        return fd

    def __getitem__(self, index: int) -> seccomp_notif:
        """Return slot *index*; its id is 0 if nothing was received and not answered."""
        return seccomp_notif.from_buffer(self._memory, index * ctypes.sizeof(seccomp_notif))


def clear(slot: seccomp_notif) -> None:
    """Make *slot* ready to receive; the kernel takes an empty one only."""
    ctypes.memset(ctypes.byref(slot), 0, ctypes.sizeof(slot))


def receive(listener_fd: int, slot: seccomp_notif) -> bool:
    """Receive a call into *slot*; False if there is none, or its caller has died meanwhile.

    The kernel would wait for one, before Linux v6.11 also when all processes with the filter have
    ended, of which poll(2) tells as well as of a call.
    """
    return bool(_events(listener_fd) & select.POLLIN) and _control(
        "SECCOMP_IOCTL_NOTIF_RECV", listener_fd, SECCOMP_IOCTL_NOTIF_RECV, slot
    )


def is_valid(listener_fd: int, slot: seccomp_notif) -> bool:
    """Does the caller still wait?

    What was read of it before, by its pid, was then really its own.
    """
    number = c_uint64(slot.id)
    return _control(
        "SECCOMP_IOCTL_NOTIF_ID_VALID", listener_fd, SECCOMP_IOCTL_NOTIF_ID_VALID, number
    )


def answer(listener_fd: int, slot: seccomp_notif, error: int) -> None:
    """Let the call of *slot* return: 0, or the errno *error*; and clear the slot."""
    response = seccomp_notif_resp(slot.id, 0, -error, 0)
    _control("SECCOMP_IOCTL_NOTIF_SEND", listener_fd, SECCOMP_IOCTL_NOTIF_SEND, response)
    clear(slot)


def has_ended(listener_fd: int) -> bool:
    """Have all processes with the filter ended?"""
    return bool(_events(listener_fd) & select.POLLHUP)


def _events(listener_fd: int) -> int:
    poll = select.poll()
    poll.register(listener_fd, select.POLLIN)
    return next((events for _, events in poll.poll(0)), 0)


def _control(name: str, fd: int, request: int, structure: ctypes.Structure | c_uint64) -> bool:
    """Do an ioctl(2); False for ENOENT, by which the caller has gone."""
    result = _libc.ioctl(c_int(fd), ctypes.c_ulong(request), ctypes.byref(structure))
    if result == -1 and ctypes.get_errno() == errno.ENOENT:
        return False
    _checked(name, result)
    return True


def read_string(pid: int, address: int, limit: int) -> bytes:
    """Return the string at *address* of process *pid*, without its null byte.

    Raises:
        OSError: EFAULT if it cannot be read, ENAMETOOLONG if no null byte is among the first
            *limit*.

    Source: process_vm_readv(2).
    """
    found = b""
    while len(found) < limit:
        at = address + len(found)
        piece = _read(pid, at, min(limit - len(found), 256, mmap.PAGESIZE - at % mmap.PAGESIZE))
        text, end, _ = piece.partition(b"\0")
        found += text
        if end:
            return found
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _read(pid: int, address: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    ours = _iovec(ctypes.addressof(buffer), size)
    theirs = _iovec(address, size)
    one = ctypes.c_ulong(1)
    result = _libc.process_vm_readv(
        c_int(pid), ctypes.byref(ours), one, ctypes.byref(theirs), one, ctypes.c_ulong(0)
    )
    return buffer.raw[: _checked("process_vm_readv", result)]


def _checked(name: str, result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
