"""System V IPC, POSIX message queues, and the way into an ipc namespace.

A leaf: imports nothing of this project but abi and decides nothing. One function per system call,
with the errors of its section-2 manual page; a failure is an OSError whose message starts with the
call's name.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ssize_t, c_uint, c_ulong, c_void_p
from typing import Final

from ckpt.kinds import abi

CLONE_NEWIPC: Final = 0x0800_0000  # <linux/sched.h>
KCMP_SYSVSEM: Final = 6  # <linux/kcmp.h>

# <linux/ipc.h>, <linux/shm.h>, <linux/sem.h>, <linux/msg.h>
IPC_CREAT, IPC_EXCL, IPC_NOWAIT = 0o1000, 0o2000, 0o4000
IPC_RMID, IPC_SET, IPC_STAT = 0, 1, 2
SHM_RDONLY: Final = 0o10000
SHM_LOCK: Final = 11
SHM_DEST, SHM_LOCKED = 0o1000, 0o2000
SEM_UNDO: Final = 0x1000
MSG_COPY: Final = 0o40000
GETVAL: Final = 12
_GETALL, _SETALL = 13, 17


class ipc64_perm(ctypes.Structure):
    """Owner and mode of an object: <asm-generic/ipcbuf.h>."""

    _fields_ = (
        ("key", c_int),
        ("uid", c_uint),
        ("gid", c_uint),
        ("cuid", c_uint),
        ("cgid", c_uint),
        ("mode", c_uint),
        ("seq", ctypes.c_ushort),
        ("pad", ctypes.c_ushort),
        ("unused", c_ulong * 2),
    )


class msqid64_ds(ctypes.Structure):
    """A message queue: <asm-generic/msgbuf.h>."""

    _fields_ = (
        ("perm", ipc64_perm),
        ("stime", c_long),
        ("rtime", c_long),
        ("ctime", c_long),
        ("cbytes", c_ulong),
        ("qnum", c_ulong),
        ("qbytes", c_ulong),
        ("lspid", c_int),
        ("lrpid", c_int),
        ("unused", c_ulong * 2),
    )


_ROOM: Final = 128  # more than shmid64_ds and semid64_ds have, which begin with ipc64_perm

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.shmget.argtypes = (c_int, c_size_t, c_int)
_libc.shmat.argtypes = (c_int, c_void_p, c_int)
_libc.shmat.restype = c_ssize_t
_libc.shmdt.argtypes = (c_void_p,)
_libc.shmctl.argtypes = (c_int, c_int, c_void_p)
_libc.semget.argtypes = (c_int, c_int, c_int)
_libc.semctl.argtypes = (c_int, c_int, c_int, c_void_p)
_libc.msgget.argtypes = (c_int, c_int)
_libc.msgctl.argtypes = (c_int, c_int, c_void_p)
_libc.msgrcv.argtypes = (c_int, c_void_p, c_size_t, c_long, c_int)
_libc.msgrcv.restype = c_ssize_t
_libc.msgsnd.argtypes = (c_int, c_void_p, c_size_t, c_int)
_libc.mq_getattr.argtypes = (c_int, c_void_p)
_libc.mq_send.argtypes = (c_int, c_char_p, c_size_t, c_uint)
_libc.mq_receive.argtypes = (c_int, c_void_p, c_size_t, c_void_p)
_libc.mq_receive.restype = c_ssize_t


def _checked(name: str, result: int) -> int:
    if result == -1:
        err = ctypes.get_errno()
        raise OSError(err, f"{name}: {os.strerror(err)}")
    return result


@contextlib.contextmanager
def inside(host_pid: int) -> Iterator[None]:
    """Be in the ipc namespace of *host_pid*; we come back to our own.

    Raises:
        OSError: as setns(2).
    """
    own = os.open("/proc/thread-self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{host_pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        try:
            abi.setns(there, CLONE_NEWIPC)
        finally:
            os.close(there)
        try:
            yield
        finally:
            abi.setns(own, CLONE_NEWIPC)
    finally:
        os.close(own)


def shmget(key: int, size: int, flags: int) -> int:
    """Make or find a segment.

    Source: shmget(2).
    """
    return _checked("shmget", _libc.shmget(key, size, flags))


def shmat(shmid: int, flags: int) -> int:
    """Attach a segment; return its address.

    Source: shmop(2).
    """
    return _checked("shmat", _libc.shmat(shmid, None, flags))


def shmdt(address: int) -> None:
    """Detach a segment.

    Source: shmop(2).
    """
    _checked("shmdt", _libc.shmdt(address))


def shmctl(shmid: int, command: int) -> None:
    """Do *command*, which takes no argument, to a segment.

    Source: shmctl(2).
    """
    _checked("shmctl", _libc.shmctl(shmid, command, None))


def shm_set(shmid: int, uid: int, gid: int, mode: int) -> None:
    """Give a segment away.

    Source: shmctl(2), IPC_SET.
    """
    _checked("shmctl", _libc.shmctl(shmid, IPC_SET, _permissions(uid, gid, mode)))


def semget(key: int, count: int, flags: int) -> int:
    """Make or find a set of *count* semaphores.

    Source: semget(2).
    """
    return _checked("semget", _libc.semget(key, count, flags))


def semaphores(semid: int, count: int) -> list[int]:
    """Return the values of a set.

    Source: semctl(2), GETALL.
    """
    values = (ctypes.c_ushort * count)()
    _checked("semctl", _libc.semctl(semid, 0, _GETALL, values))
    return list(values)


def set_semaphores(semid: int, values: list[int]) -> None:
    """Set the values of a set.

    Source: semctl(2), SETALL.
    """
    _checked("semctl", _libc.semctl(semid, 0, _SETALL, (ctypes.c_ushort * len(values))(*values)))


def sem_set(semid: int, uid: int, gid: int, mode: int) -> None:
    """Give a set away.

    Source: semctl(2), IPC_SET.
    """
    _checked("semctl", _libc.semctl(semid, 0, IPC_SET, _permissions(uid, gid, mode)))


def sembufs(*operations: tuple[int, int, int]) -> bytes:
    """Return an array of struct sembuf: number, operation, flags.

    Source: semop(2).
    """
    return b"".join(struct.pack("=Hhh", *operation) for operation in operations)


def msgget(key: int, flags: int) -> int:
    """Make or find a message queue.

    Source: msgget(2).
    """
    return _checked("msgget", _libc.msgget(key, flags))


def msg_stat(msqid: int) -> msqid64_ds:
    """Return what the kernel notes of a queue.

    Source: msgctl(2), IPC_STAT.
    """
    found = msqid64_ds()
    _checked("msgctl", _libc.msgctl(msqid, IPC_STAT, ctypes.byref(found)))
    return found


def msg_set(msqid: int, uid: int, gid: int, mode: int, qbytes: int) -> None:
    """Give a queue away and set its size in bytes.

    Source: msgctl(2), IPC_SET.
    """
    wanted = msqid64_ds(qbytes=qbytes)
    wanted.perm.uid, wanted.perm.gid, wanted.perm.mode = uid, gid, mode
    _checked("msgctl", _libc.msgctl(msqid, IPC_SET, ctypes.byref(wanted)))


def msg_peek(msqid: int, place: int, room: int) -> tuple[int, bytes]:
    """Return type and text of the message at *place*, from 0 on, of up to *room* bytes; it stays.

    Raises:
        OSError: ENOMSG: there is none; ENOSYS: the kernel has no CONFIG_CHECKPOINT_RESTORE.

    Source: msgop(2), MSG_COPY.
    """
    buffer = ctypes.create_string_buffer(8 + room)
    length = _checked("msgrcv", _libc.msgrcv(msqid, buffer, room, place, MSG_COPY | IPC_NOWAIT))
    (kind,) = struct.unpack_from("=q", buffer)
    return kind, buffer.raw[8 : 8 + length]


def msg_send(msqid: int, kind: int, text: bytes) -> None:
    """Append a message.

    Source: msgop(2).
    """
    _checked("msgsnd", _libc.msgsnd(msqid, struct.pack("=q", kind) + text, len(text), IPC_NOWAIT))


def _permissions(uid: int, gid: int, mode: int) -> ctypes.Array[ctypes.c_char]:
    wanted = ipc64_perm(uid=uid, gid=gid, mode=mode)
    return ctypes.create_string_buffer(bytes(wanted), _ROOM)


def mq_make(name: bytes, mode: int, messages: int, size: int) -> int:
    """Make a queue of up to *messages* of up to *size* bytes, to be used without waiting.

    Source: mq_open(3); *name* begins with the slash only there.
    """
    limits = (c_long * 8)(0, messages, size)
    how = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    return _checked("mq_open", _libc.mq_open(b"/" + name, how, c_uint(mode), limits))


def mq_unlink(name: bytes) -> None:
    """Remove the name of a queue.

    Source: mq_unlink(3).
    """
    _checked("mq_unlink", _libc.mq_unlink(b"/" + name))


def mq_limits(fd: int) -> tuple[int, int]:
    """Return how many messages of how many bytes a queue may hold.

    Source: mq_getattr(3).
    """
    limits = (c_long * 8)()
    _checked("mq_getattr", _libc.mq_getattr(fd, limits))
    return limits[1], limits[2]


def mq_send(fd: int, text: bytes, priority: int) -> None:
    """Put a message into a queue.

    Source: mq_send(3).
    """
    _checked("mq_send", _libc.mq_send(fd, text, len(text), priority))


def mq_receive(fd: int, size: int) -> tuple[int, bytes]:
    """Take the first message, of up to *size* bytes; return its priority and text.

    Source: mq_receive(3).
    """
    buffer, priority = ctypes.create_string_buffer(size), c_uint()
    length = _libc.mq_receive(fd, buffer, size, ctypes.byref(priority))
    return priority.value, buffer.raw[: _checked("mq_receive", length)]
