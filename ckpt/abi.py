"""ptrace(2) and the other calls of the process engine that the standard library lacks.

A leaf: imports nothing of this project and decides nothing. One function per system call, with
the name, the argument order and the errors of its section-2 manual page; a failure is an OSError
whose message starts with the call's name. ptrace is per thread: whoever seized a thread makes all
its other calls, from the same thread of its own.
"""

import ctypes
import os
from ctypes import c_int, c_long, c_size_t, c_uint, c_uint16, c_uint32, c_uint64, c_ulong, c_void_p
from typing import Any, Final

# <linux/ptrace.h>
PTRACE_CONT: Final = 7
PTRACE_SINGLESTEP: Final = 9
PTRACE_DETACH: Final = 17
PTRACE_SYSCALL: Final = 24
PTRACE_SETOPTIONS: Final = 0x4200
PTRACE_GETREGSET: Final = 0x4204
PTRACE_SETREGSET: Final = 0x4205
PTRACE_SEIZE: Final = 0x4206
PTRACE_INTERRUPT: Final = 0x4207
PTRACE_PEEKSIGINFO: Final = 0x4209
PTRACE_GETSIGMASK: Final = 0x420A
PTRACE_SETSIGMASK: Final = 0x420B
PTRACE_SECCOMP_GET_FILTER: Final = 0x420C
PTRACE_SECCOMP_GET_METADATA: Final = 0x420D
PTRACE_GET_RSEQ_CONFIGURATION: Final = 0x420F
PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: Final = 0x4211
PTRACE_PEEKSIGINFO_SHARED: Final = 1
PTRACE_O_TRACESYSGOOD: Final = 1
PTRACE_O_TRACEEXIT: Final = 0x40
PTRACE_O_EXITKILL: Final = 0x100000
PTRACE_O_SUSPEND_SECCOMP: Final = 0x200000

# <linux/elf.h>: register sets
NT_PRSTATUS: Final = 1
NT_X86_XSTATE: Final = 0x202

# <linux/fs.h>: categories of PAGEMAP_SCAN
PAGEMAP_SCAN: Final = 0xC0606610
PAGE_IS_WRITTEN: Final = 1 << 1
PAGE_IS_FILE: Final = 1 << 2
PAGE_IS_PRESENT: Final = 1 << 3
PAGE_IS_SWAPPED: Final = 1 << 4
PAGE_IS_PFNZERO: Final = 1 << 5
PAGE_IS_GUARD: Final = 1 << 8
PM_SCAN_WP_MATCHING: Final = 1 << 0
PM_SCAN_CHECK_WPASYNC: Final = 1 << 1

# <linux/userfaultfd.h>
UFFD_API: Final = 0xAA
UFFD_USER_MODE_ONLY: Final = 1
UFFD_EVENT_PAGEFAULT: Final = 0x12
UFFD_EVENT_FORK: Final = 0x13
UFFD_EVENT_REMAP: Final = 0x14
UFFD_EVENT_REMOVE: Final = 0x15
UFFD_EVENT_UNMAP: Final = 0x16
UFFD_FEATURE_EVENT_FORK: Final = 1 << 1
UFFD_FEATURE_EVENT_REMAP: Final = 1 << 2
UFFD_FEATURE_EVENT_REMOVE: Final = 1 << 3
UFFD_FEATURE_EVENT_UNMAP: Final = 1 << 6
UFFD_FEATURE_WP_UNPOPULATED: Final = 1 << 13
UFFD_FEATURE_WP_ASYNC: Final = 1 << 15
UFFDIO_API: Final = 0xC018AA3F
UFFDIO_REGISTER: Final = 0xC020AA00
UFFDIO_REGISTER_MODE_MISSING: Final = 1 << 0
UFFDIO_REGISTER_MODE_WP: Final = 1 << 1
UFFDIO_UNREGISTER: Final = 0x8010AA01
UFFDIO_WAKE: Final = 0x8010AA02
UFFDIO_COPY: Final = 0xC028AA03
UFFDIO_ZEROPAGE: Final = 0xC020AA04
UFFDIO_WRITEPROTECT: Final = 0xC018AA06

# The same on every architecture: include/uapi/asm-generic/unistd.h and syscall_64.tbl differ below
# 403, so that these go through arch/ or are given by libc.
NR_PIDFD_OPEN: Final = 434
NR_PIDFD_GETFD: Final = 438

SIGINFO_BYTES: Final = 128
"""sizeof(siginfo_t) on every architecture (SI_MAX_SIZE)."""


class iovec(ctypes.Structure):
    """A piece of memory: iovec(3type)."""

    _fields_ = (("iov_base", c_void_p), ("iov_len", c_size_t))


class ptrace_peeksiginfo_args(ctypes.Structure):
    """Argument of PTRACE_PEEKSIGINFO: ptrace(2)."""

    _fields_ = (("off", c_uint64), ("flags", c_uint32), ("nr", c_int))


class ptrace_rseq_configuration(ctypes.Structure):
    """Result of PTRACE_GET_RSEQ_CONFIGURATION.

    Source: include/uapi/linux/ptrace.h, since Linux v5.13.
    """

    _fields_ = (
        ("rseq_abi_pointer", c_uint64),
        ("rseq_abi_size", c_uint32),
        ("signature", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
    )


class seccomp_metadata(ctypes.Structure):
    """Argument and result of PTRACE_SECCOMP_GET_METADATA: <linux/ptrace.h>."""

    _fields_ = (("filter_off", c_uint64), ("flags", c_uint64))


class sock_filter(ctypes.Structure):
    """One instruction of a classic BPF program: <linux/filter.h>."""

    _fields_ = (
        ("code", c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", c_uint32),
    )


class pm_scan_arg(ctypes.Structure):
    """Argument of ioctl PAGEMAP_SCAN: <linux/fs.h>, since Linux v6.7."""

    _fields_ = (
        ("size", c_uint64),
        ("flags", c_uint64),
        ("start", c_uint64),
        ("end", c_uint64),
        ("walk_end", c_uint64),
        ("vec", c_uint64),
        ("vec_len", c_uint64),
        ("max_pages", c_uint64),
        ("category_inverted", c_uint64),
        ("category_mask", c_uint64),
        ("category_anyof_mask", c_uint64),
        ("return_mask", c_uint64),
    )


class page_region(ctypes.Structure):
    """One range that PAGEMAP_SCAN found: <linux/fs.h>."""

    _fields_ = (("start", c_uint64), ("end", c_uint64), ("categories", c_uint64))


class uffdio_api(ctypes.Structure):
    """Argument of ioctl UFFDIO_API: <linux/userfaultfd.h>."""

    _fields_ = (("api", c_uint64), ("features", c_uint64), ("ioctls", c_uint64))


class uffdio_range(ctypes.Structure):
    """Argument of ioctls UFFDIO_UNREGISTER and UFFDIO_WAKE: <linux/userfaultfd.h>."""

    _fields_ = (("start", c_uint64), ("len", c_uint64))


class uffdio_writeprotect(ctypes.Structure):
    """Argument of ioctl UFFDIO_WRITEPROTECT: <linux/userfaultfd.h>."""

    _fields_ = (("start", c_uint64), ("len", c_uint64), ("mode", c_uint64))


class uffdio_register(ctypes.Structure):
    """Argument of ioctl UFFDIO_REGISTER: <linux/userfaultfd.h>."""

    _fields_ = (("start", c_uint64), ("len", c_uint64), ("mode", c_uint64), ("ioctls", c_uint64))


class uffdio_copy(ctypes.Structure):
    """Argument of ioctl UFFDIO_COPY: <linux/userfaultfd.h>."""

    _fields_ = (
        ("dst", c_uint64),
        ("src", c_uint64),
        ("len", c_uint64),
        ("mode", c_uint64),
        ("copy", ctypes.c_int64),
    )


class uffdio_zeropage(ctypes.Structure):
    """Argument of ioctl UFFDIO_ZEROPAGE: <linux/userfaultfd.h>."""

    _fields_ = (
        ("start", c_uint64),
        ("len", c_uint64),
        ("mode", c_uint64),
        ("zeropage", ctypes.c_int64),
    )


class prctl_mm_map(ctypes.Structure):
    """Argument of PR_SET_MM_MAP: <linux/prctl.h>."""

    _fields_ = (
        ("start_code", c_uint64),
        ("end_code", c_uint64),
        ("start_data", c_uint64),
        ("end_data", c_uint64),
        ("start_brk", c_uint64),
        ("brk", c_uint64),
        ("start_stack", c_uint64),
        ("arg_start", c_uint64),
        ("arg_end", c_uint64),
        ("env_start", c_uint64),
        ("env_end", c_uint64),
        ("auxv", c_uint64),
        ("auxv_size", c_uint32),
        ("exe_fd", c_uint32),
    )


class clone_args(ctypes.Structure):
    """Argument of clone3(2)."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size",
            "tls", "set_tid", "set_tid_size", "cgroup",
        )
    )  # fmt: skip


class sched_attr(ctypes.Structure):
    """Argument of sched_setattr(2) and sched_getattr(2)."""

    _fields_ = (
        ("size", c_uint32),
        ("sched_policy", c_uint32),
        ("sched_flags", c_uint64),
        ("sched_nice", ctypes.c_int32),
        ("sched_priority", c_uint32),
        ("sched_runtime", c_uint64),
        ("sched_deadline", c_uint64),
        ("sched_period", c_uint64),
        ("sched_util_min", c_uint32),
        ("sched_util_max", c_uint32),
    )


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (c_long, c_int, c_void_p, c_void_p)
_libc.ptrace.restype = c_long
_libc.setns.argtypes = (c_int, c_int)
_libc.syncfs.argtypes = (c_int,)
_libc.unshare.argtypes = (c_int,)
_libc.ioctl.argtypes = (c_int, c_ulong, c_void_p)
_libc.syscall.restype = c_long
_libc.prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)


def _checked(name: str, result: int, about: str | None = None) -> int:
    """Return *result*, or raise the OSError that errno describes if it is -1."""
    if result == -1:
        err = ctypes.get_errno()
        raise OSError(err, f"{name}: {os.strerror(err)}", about)
    return result


def ptrace(request: int, tid: int, addr: int = 0, data: Any = None) -> int:  # noqa: ANN401 (c_void_p)
    """Trace or control another thread.

    Args:
        request: PTRACE_*.
        tid: the thread, in the caller's pid namespace.
        addr: as the request defines it.
        data: an integer, or what ctypes passes by address.

    Raises:
        OSError: as ptrace(2).

    Source: ptrace(2).
    """
    result: int = _libc.ptrace(request, tid, addr, data)
    if result == -1:
        return _checked("ptrace", result, f"thread {tid}")
    return result


def setns(fd: int, nstype: int = 0) -> None:
    """Join a namespace. The caller must be single-threaded.

    Source: setns(2).
    """
    _checked("setns", _libc.setns(fd, nstype))


def syncfs(fd: int) -> None:
    """Make the whole file system of *fd* durable.

    Source: syncfs(2).
    """
    _checked("syncfs", _libc.syncfs(fd))


def prctl(option: int, *args: int) -> int:
    """Operate on the calling thread or process.

    Source: prctl(2).
    """
    return _checked("prctl", _libc.prctl(option, *(*args, 0, 0, 0, 0)[:4]))


def ioctl(fd: int, request: int, argument: ctypes.Structure) -> int:
    """Control a device or file with a structure as argument.

    Source: ioctl(2).
    """
    return _checked("ioctl", _libc.ioctl(fd, request, ctypes.byref(argument)))


def ioctl_errno(fd: int, request: int, address: int) -> int:
    """Control a device or file with a structure at *address*; return errno, 0 after success.

    Source: ioctl(2).
    """
    return ctypes.get_errno() if _libc.ioctl(fd, request, address) == -1 else 0


def syscall(name: str, number: int, *args: Any) -> int:  # noqa: ANN401 (ctypes values)
    """Make system call *number* in this process; *name* is for the error's text.

    Integers are passed as unsigned 64-bit registers, ctypes values as they are.

    Source: syscall(2).
    """
    words = [c_ulong(a & (1 << 64) - 1) if isinstance(a, int) else a for a in args]
    return _checked(name, _libc.syscall(c_long(number), *words))


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """Duplicate a descriptor of another process; the new one is close-on-exec.

    Source: pidfd_getfd(2).
    """
    return _checked(
        "pidfd_getfd",
        _libc.syscall(c_long(NR_PIDFD_GETFD), c_int(pidfd), c_int(target_fd), c_uint(0)),
    )
