"""System calls about open files that the standard library lacks.

A leaf: imports nothing of this project and decides nothing. One function per system call, with
the name and the errors of its section-2 manual page; a failure is an OSError whose message starts
with the call's name. Descriptors that these functions return are close-on-exec.
"""

import ctypes
import errno
import os
import platform
import struct
from ctypes import byref, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint64, c_ulong, c_void_p
from typing import Final

CLONE_NEWNET: Final = 0x40000000  # <linux/sched.h>

# <linux/kcmp.h>
KCMP_FILE: Final = 0
KCMP_EPOLL_TFD: Final = 7

# <linux/openat2.h>
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_IN_ROOT: Final = 0x10

# <linux/fcntl.h>
AT_FDCWD: Final = -100

# <linux/timerfd.h>
TFD_TIMER_ABSTIME: Final = 1
TFD_TIMER_CANCEL_ON_SET: Final = 2
TFD_IOC_SET_TICKS: Final = 0x40085400

# <linux/inotify.h>
INOTIFY_IOC_SETNEXTWD: Final = 0x40044900

# <linux/sockios.h>, <linux/un.h>
SIOCINQ: Final = 0x541B
SIOCUNIXFILE: Final = 0x89E0

# <linux/fcntl.h>
F_SETOWN_EX: Final = 15
F_GETOWN_EX: Final = 16
F_OWNER_TID: Final = 0
F_OWNER_PID: Final = 1
F_OWNER_PGRP: Final = 2

# <linux/prctl.h>, <linux/securebits.h>
PR_GET_SECUREBITS: Final = 27
PR_SET_SECUREBITS: Final = 28
SECBIT_NO_SETUID_FIXUP: Final = 4

EPOLL_CTL_ADD: Final = 1  # <linux/eventpoll.h>

# <asm-generic/socket.h>
SOL_SOCKET: Final = 1
SO_GET_FILTER: Final = 26

_PIDFD_THREAD: Final = os.O_EXCL  # <linux/pidfd.h>

SPLICE_F_NONBLOCK: Final = 2  # <linux/splice.h>

_X86_64: Final = platform.machine() == "x86_64"

# Numbers above 403 are the same on every architecture since Linux v5.1.
NR_KCMP: Final = 312 if _X86_64 else 272
NR_OPENAT2: Final = 437
NR_PIDFD_GETFD: Final = 438

_EPOLL_EVENT: Final = struct.Struct("=IQ" if _X86_64 else "@IQ")
"""struct epoll_event: packed on x86_64 only (include/uapi/linux/eventpoll.h)."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = c_long
_libc.setns.argtypes = (c_int, c_int)
_libc.tee.argtypes = (c_int, c_int, c_size_t, c_uint)
_libc.tee.restype = ctypes.c_ssize_t
_libc.timerfd_create.argtypes = (c_int, c_int)
_libc.timerfd_settime.argtypes = (c_int, c_int, c_void_p, c_void_p)
_libc.timerfd_gettime.argtypes = (c_int, c_void_p)
_libc.signalfd.argtypes = (c_int, c_void_p, c_int)
_libc.epoll_ctl.argtypes = (c_int, c_int, c_int, c_char_p)
_libc.inotify_init1.argtypes = (c_int,)
_libc.inotify_add_watch.argtypes = (c_int, c_char_p, c_uint)
_libc.open_by_handle_at.argtypes = (c_int, c_char_p, c_int)
_libc.prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_libc.bind.argtypes = (c_int, c_char_p, c_uint)
_libc.getsockopt.argtypes = (c_int, c_int, c_int, c_void_p, c_void_p)
_libc.setsockopt.argtypes = (c_int, c_int, c_int, c_char_p, c_uint)


def _checked(name: str, result: int, path: bytes | None = None) -> int:
    """Return *result*, or raise the OSError that errno describes if it is -1."""
    if result == -1:
        err = ctypes.get_errno()
        raise OSError(err, f"{name}: {os.strerror(err)}", path and os.fsdecode(path))
    return result


def kcmp(pid1: int, pid2: int, kind: int, idx1: int, idx2: int) -> int:
    """Compare kernel objects: 0 equal, 1 less, 2 greater, 3 different without an order.

    Source: kcmp(2).
    """
    result = _libc.syscall(
        c_long(NR_KCMP), c_int(pid1), c_int(pid2), c_int(kind), c_ulong(idx1), c_ulong(idx2)
    )
    return _checked("kcmp", result)


def is_epoll_target(fd: int, epoll_fd: int, target_fd: int, nth: int) -> bool:
    """Is our *fd* what the *nth* entry of number *target_fd* in our *epoll_fd* watches?

    Raises:
        OSError: ENOENT: *epoll_fd* has no such entry.

    Source: kcmp(2), KCMP_EPOLL_TFD; struct kcmp_epoll_slot.
    """
    slot = (ctypes.c_uint32 * 3)(epoll_fd, target_fd, nth)
    pid = os.getpid()
    return kcmp(pid, pid, KCMP_EPOLL_TFD, fd, ctypes.addressof(slot)) == 0


def pidfd_open(tid: int) -> int:
    """Return a descriptor of a process; or of one of its threads, where *tid* is not the first.

    Raises:
        OSError: EINVAL: of a thread there is none (before Linux v6.9).

    Source: pidfd_open(2), PIDFD_THREAD.
    """
    try:
        return os.pidfd_open(tid)
    except OSError as e:
        if e.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
        return os.pidfd_open(tid, _PIDFD_THREAD)


def pidfd_getfd(pidfd: int, targetfd: int) -> int:
    """Duplicate descriptor *targetfd* of another process.

    Source: pidfd_getfd(2), since Linux v5.6.
    """
    result = _libc.syscall(c_long(NR_PIDFD_GETFD), c_int(pidfd), c_int(targetfd), c_uint(0))
    return _checked("pidfd_getfd", result)


def openat2(dirfd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open an existing file, walking *path* as RESOLVE_* say.

    Source: openat2(2), since Linux v5.6.
    """
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    result = _libc.syscall(
        c_long(NR_OPENAT2), c_int(dirfd), c_char_p(path), c_char_p(how), c_size_t(len(how))
    )
    return _checked("openat2", result, path)


def setns(fd: int, nstype: int) -> None:
    """Move the calling thread into a namespace.

    Source: setns(2).
    """
    _checked("setns", _libc.setns(fd, nstype))


def tee(fd_in: int, fd_out: int, length: int) -> int:
    """Duplicate up to *length* bytes from one pipe to another without consuming them.

    Source: tee(2).
    """
    return _checked("tee", _libc.tee(fd_in, fd_out, length, SPLICE_F_NONBLOCK))


def timerfd_create(clockid: int) -> int:
    """Make a timer that is read as a file.

    Source: timerfd_create(2).
    """
    return _checked("timerfd_create", _libc.timerfd_create(clockid, os.O_CLOEXEC))


def timerfd_settime(fd: int, flags: int, value_ns: int, interval_ns: int) -> None:
    """Arm the timer for *value_ns*, or disarm it with 0.

    Source: timerfd_create(2).
    """
    new = (c_long * 4)(*divmod(interval_ns, 10**9), *divmod(value_ns, 10**9))
    _checked("timerfd_settime", _libc.timerfd_settime(fd, flags, new, None))


def timerfd_gettime(fd: int) -> tuple[int, int]:
    """Return the time until the next expiration and the interval.

    Source: timerfd_create(2).
    """
    now = (c_long * 4)()
    _checked("timerfd_gettime", _libc.timerfd_gettime(fd, now))
    return now[2] * 10**9 + now[3], now[0] * 10**9 + now[1]


def signalfd(mask: int) -> int:
    """Make a descriptor for signals; bit N-1 of *mask* is signal N.

    Source: signalfd(2).
    """
    sigset = (c_uint64 * 16)(mask)
    return _checked("signalfd", _libc.signalfd(-1, sigset, os.O_CLOEXEC))


def epoll_ctl_add(epoll_fd: int, fd: int, events: int, data: int) -> None:
    """Have *epoll_fd* watch *fd*.

    Source: epoll_ctl(2).
    """
    event = epoll_event(events, data)
    _checked("epoll_ctl", _libc.epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, event))


def epoll_event(events: int, data: int) -> bytes:
    """Return a struct epoll_event.

    Source: epoll_ctl(2).
    """
    return _EPOLL_EVENT.pack(events, data)


def inotify_init() -> int:
    """Make an inotify instance.

    Source: inotify_init(2).
    """
    return _checked("inotify_init1", _libc.inotify_init1(os.O_CLOEXEC))


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """Watch *path*; return the watch descriptor.

    Source: inotify_add_watch(2).
    """
    return _checked("inotify_add_watch", _libc.inotify_add_watch(fd, path, mask), path)


def open_by_handle_at(mount_fd: int, handle_type: int, handle: bytes, flags: int) -> int:
    """Open the file that *handle* means on the file system of *mount_fd*.

    Source: open_by_handle_at(2).
    """
    blob = struct.pack("Ii", len(handle), handle_type) + handle
    result = _libc.open_by_handle_at(mount_fd, blob, flags | os.O_CLOEXEC)
    return _checked("open_by_handle_at", result)


def get_filter(fd: int) -> bytes:
    """Return the classic BPF program attached to a socket; empty if there is none.

    The length that the kernel takes and gives counts instructions, of 8 bytes each.

    Raises:
        OSError: EACCES: the program is not a classic one.

    Source: net/core/filter.c, sk_get_filter().
    """
    count = c_uint(0)
    _checked("getsockopt", _libc.getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, None, byref(count)))
    if not count.value:
        return b""
    program = ctypes.create_string_buffer(count.value * 8)
    _checked("getsockopt", _libc.getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, program, byref(count)))
    return program.raw


def attach_filter(fd: int, program: bytes) -> None:
    """Attach the classic BPF *program* to a socket.

    Source: socket(7), SO_ATTACH_FILTER; struct sock_fprog.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    result = _libc.setsockopt(fd, SOL_SOCKET, SO_GET_FILTER, fprog, len(fprog))
    _checked("setsockopt", result)


def bind(fd: int, address: bytes) -> None:
    """Bind a socket to *address*, a struct sockaddr of its family.

    Source: bind(2).
    """
    _checked("bind", _libc.bind(fd, address, len(address)))


def getsockopt(fd: int, level: int, option: int, value: bytes) -> bytes:
    """Return an option that is asked for with a *value*, and answered in its place.

    Source: getsockopt(2).
    """
    buffer, length = ctypes.create_string_buffer(value, len(value)), c_uint(len(value))
    _checked("getsockopt", _libc.getsockopt(fd, level, option, buffer, byref(length)))
    return buffer.raw[: length.value]


def prctl(option: int, argument: int = 0) -> int:
    """Read or change an attribute of the calling process.

    Source: prctl(2).
    """
    return _checked("prctl", _libc.prctl(option, argument, 0, 0, 0))
