"""Pseudo-terminals of the pod: pty(7), ioctl_tty(2).

A pair is an object; its master may be in the pod (a terminal emulator, sshd) or outside (the
console of `launcher run -t`), and then goes to the pod's holder, and what was typed there and not
read is lost.
"""

import errno
import fcntl
import os
import stat as mode_bits
import struct
from typing import Final

import msgspec

from ckpt.kinds import flags, location, ptyqueue, termios
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.model import OpenFile

_PTMX: Final = os.makedev(5, 2)
_SLAVE_MAJORS: Final = range(136, 144)  # Documentation/admin-guide/devices.txt
_MINORS: Final = 256
# <asm-generic/ioctls.h>
_TIOCEXCL: Final = 0x540C
_TIOCGWINSZ: Final = 0x5413
_TIOCSWINSZ: Final = 0x5414
_TIOCPKT: Final = 0x5420
_TIOCGPTN: Final = 0x80045430
_TIOCSPTLCK: Final = 0x40045431
_TIOCGPKT: Final = 0x80045438
_TIOCGPTLCK: Final = 0x80045439
_TIOCGEXCL: Final = 0x80045440


class State(msgspec.Struct, frozen=True):
    """An open end of a pair."""

    pty: int
    master: bool


class ObjectState(msgspec.Struct, frozen=True):
    """A pair.

    Attributes:
        directory: where its devpts is mounted in the pod.
        index: the slave is directory/index.
        outside: is the master outside of the pod?
        settings: of the terminal.
        size: rows, columns, and width and height in pixels.
        locked: can the slave not be opened yet (unlockpt(3))?
        packet: does the master read in packet mode?
        exclusive: may it not be opened any more (TIOCEXCL)?
        uid, gid, mode: of the slave's node.
        queues: what is on its way between the ends.
    """

    directory: bytes
    index: int
    outside: bool
    settings: termios.Settings
    size: list[int]
    locked: bool
    packet: bool
    exclusive: bool
    uid: int
    gid: int
    mode: int
    queues: ptyqueue.Queues = ptyqueue.Queues()


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return not source.flags & os.O_PATH and (_is_master(source.stat) or _is_slave(source.stat))


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    if not location.is_inside(source, dump):
        dump.refuse(
            source,
            "it is a terminal of the host",
            "start the program with `launcher start`, or with `launcher run -t`",
        )
        return None
    try:
        number = collect_pair(source.local_fd, _index(source), dump)
    except OSError as e:
        if e.errno not in {errno.EIO, errno.ENOENT}:
            raise
        dump.refuse(source, "its terminal was hung up")
        return None
    except ValueError as e:
        dump.refuse(source, f"its terminal has {e}")
        return None
    return State(number, _is_master(source.stat))


def collect_pair(fd: int, index: int, dump: Dump) -> int:
    """Return the object of pair *index*; *fd* is either end.

    Raises:
        OSError: EIO, ENOENT: it was hung up.
        ValueError: it has unknown flags, or the pod has no devpts.
    """
    number, new = dump.object_id("pty", index)
    if not new:
        return number
    path = path_of(index, dump)
    master = next(
        (s for s in dump.sources() if _is_open_master(s, dump) and _index(s) == index), None
    )
    node = location.open_in_pod(dump.pod_root_fd, path, os.O_PATH)
    stat = os.fstat(node)
    os.close(node)
    state = ObjectState(
        directory=os.path.dirname(path),
        index=index,
        outside=master is None,
        settings=termios.collect(fd),
        size=list(struct.unpack("4H", fcntl.ioctl(fd, _TIOCGWINSZ, bytes(8)))),
        locked=master is not None and _is_on(master.local_fd, _TIOCGPTLCK),
        packet=master is not None and _is_on(master.local_fd, _TIOCGPKT),
        exclusive=_is_on(fd, _TIOCGEXCL),
        uid=stat.st_uid,
        gid=stat.st_gid,
        mode=mode_bits.S_IMODE(stat.st_mode),
        queues=_queues(master, index, path, dump),
    )
    dump.set_object(number, state)
    return number


def _queues(master: Source | None, index: int, path: bytes, dump: Dump) -> ptyqueue.Queues:
    """Return what the pair holds; that of a running pod is its programs'.

    A slave that nobody has open is opened only if there is something: its closing hangs up.
    """
    if dump.looking_only or master is None or _is_on(master.local_fd, _TIOCGPTLCK):
        return ptyqueue.Queues()
    if not _has_slave(index, dump) and not ptyqueue.has_output(master.local_fd):
        return ptyqueue.Queues()
    slave = location.open_in_pod(dump.pod_root_fd, path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        return ptyqueue.look(master.local_fd, slave)
    finally:
        os.close(slave)


def _has_slave(index: int, dump: Dump) -> bool:
    return any(
        recognises(s, dump) and not _is_master(s.stat) and _index(s) == index
        for s in dump.sources()
        if location.is_inside(s, dump)
    )


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    master, slave = workshop.object(state.pty)
    status = flags.open_flags(file.flags) & ~flags.O_ASYNC
    if not state.master:
        return os.open(slave, status | os.O_NOCTTY | os.O_CLOEXEC)
    fd: int = fcntl.fcntl(master, fcntl.F_DUPFD_CLOEXEC, 0)
    fcntl.fcntl(fd, fcntl.F_SETFL, status)
    return fd


def rebuild_object(state: ObjectState, workshop: Workshop) -> tuple[int, bytes]:
    """Make the pair; return its master, and the path of its slave."""
    master = workshop.temporary(_open_master(state))
    _put(master, _TIOCSPTLCK, 0)
    slave = slave_path(state)
    # Stays open for now: the master would hang up if its last slave went (drivers/tty/pty.c).
    how = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    fd = workshop.temporary(os.open(slave, how))
    termios.rebuild(state.settings, fd)
    ptyqueue.put(state.queues, master, fd)
    fcntl.ioctl(fd, _TIOCSWINSZ, struct.pack("4H", *state.size))
    os.fchown(fd, state.uid, state.gid)
    os.fchmod(fd, state.mode)
    if state.exclusive:
        fcntl.ioctl(fd, _TIOCEXCL)
    _put(master, _TIOCPKT, state.packet)
    _put(master, _TIOCSPTLCK, state.locked)
    if state.outside:
        workshop.give_console(state.index, master)
    return master, slave


def path_of(index: int, dump: Dump) -> bytes:
    """Return the path of the slave of pair *index* in the pod.

    Raises:
        ValueError: the pod has no devpts.
    """
    for mount in dump.mounts().values():
        if mount.fstype == "devpts":
            return mount.point + b"/%d" % index
    raise ValueError("no place: the pod has no file system of type devpts")


def slave_path(state: ObjectState) -> bytes:
    """Return the path of the slave in the pod."""
    return state.directory + b"/%d" % state.index


def _is_master(stat: os.stat_result) -> bool:
    return mode_bits.S_ISCHR(stat.st_mode) and stat.st_rdev == _PTMX


def _is_slave(stat: os.stat_result) -> bool:
    return mode_bits.S_ISCHR(stat.st_mode) and os.major(stat.st_rdev) in _SLAVE_MAJORS


def _is_open_master(source: Source, dump: Dump) -> bool:
    return recognises(source, dump) and _is_master(source.stat) and location.is_inside(source, dump)


def _index(source: Source) -> int:
    if _is_master(source.stat):
        return int(_ask(source.local_fd, _TIOCGPTN))
    major, minor = os.major(source.stat.st_rdev), os.minor(source.stat.st_rdev)
    return (major - _SLAVE_MAJORS.start) * _MINORS + minor


def _ask(fd: int, request: int) -> int:
    (value,) = struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))
    return int(value)


def _is_on(fd: int, request: int) -> bool:
    return bool(_ask(fd, request))


def _put(fd: int, request: int, value: int) -> None:
    fcntl.ioctl(fd, request, struct.pack("i", value))


def _open_master(state: ObjectState) -> int:
    """Open masters until the kernel, which gives the lowest free index, gives ours."""
    surplus = []
    try:
        while True:
            fd = os.open(state.directory + b"/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            index = _ask(fd, _TIOCGPTN)
            if index == state.index:
                return fd
            surplus.append(fd)
            if index > state.index or len(surplus) > state.index:
                raise OSError(errno.EBUSY, f"pseudo-terminal {state.index} is in use already")
    finally:
        for fd in surplus:
            os.close(fd)
