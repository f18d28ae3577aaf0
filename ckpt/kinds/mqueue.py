"""POSIX message queues: mq_overview(7).

A queue lives in the ipc namespace until it is unlinked and nobody has it open. Its messages can
only be taken, not looked at. So they are taken and put back, while the pod stands still, by a child
that goes on if the dump is killed. A queue of which a process wants to be told (mq_notify(3)) is
refused: the kernel does not say what it is to be told.
"""

import errno
import os
import signal
import stat as mode_bits
from collections.abc import Iterator

import msgspec

from ckpt.kinds import flags, ipcabi, procinfo
from ckpt.kinds.acting import acting_as
from ckpt.kinds.protocol import Dump, Source, Workshop
from ckpt.kinds.regular import reopen
from ckpt.model import OpenFile
from launcher import abi

_DELETED = b" (deleted)"


class State(msgspec.Struct, frozen=True):
    """An open queue: the object."""

    queue: int


class ObjectState(msgspec.Struct, frozen=True):
    """A queue.

    Attributes:
        name: without the slash.
        linked: can it be opened by its name?
        uid, gid, mode: of the access.
        max_messages, message_bytes: its limits.
        messages: priority and length of each, in the order in which they are received.
        first_page: of their texts, one after another, in the archive.
    """

    name: bytes
    linked: bool
    uid: int
    gid: int
    mode: int
    max_messages: int
    message_bytes: int
    messages: list[tuple[int, int]]
    first_page: int


class PodState(msgspec.Struct, frozen=True):
    """A queue that has a name, whoever has it open: the object."""

    queue: int


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind. The kernel's own mount of the queues is in no mount namespace."""
    if source.fd < 0 or not mode_bits.S_ISREG(source.stat.st_mode):
        return False
    if procinfo.parse_fdinfo(source.fdinfo.encode()).mount in dump.mounts():
        return False
    return source.stat.st_dev == dump.once("mqueue device", lambda: _device(dump))


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    number, new = dump.object_id("mqueue", source.stat.st_ino)
    if new:
        link = os.fsencode(source.link)
        name, linked = link.removesuffix(_DELETED).lstrip(b"/"), not link.endswith(_DELETED)
        if not _collect_queue(number, f"/proc/self/fd/{source.local_fd}", name, linked, dump):
            return None
    return State(number)


def collect_pod(dump: Dump) -> Iterator[PodState]:
    """See protocol.PodKind."""
    mount_fd = _mount(dump)
    try:
        for name in sorted(os.listdir(mount_fd)):
            inode = os.stat(name, dir_fd=mount_fd).st_ino
            number, new = dump.object_id("mqueue", inode)
            path = f"/proc/self/fd/{mount_fd}/{name}"
            if not new or _collect_queue(number, path, os.fsencode(name), True, dump):
                yield PodState(number)
    finally:
        os.close(mount_fd)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    status = flags.open_flags(file.flags) & ~flags.O_ASYNC
    return reopen(workshop.object(state.queue), status, workshop)


def rebuild_pod(state: PodState, workshop: Workshop) -> None:
    """See protocol.PodKind."""
    workshop.object(state.queue)


def rebuild_object(state: ObjectState, workshop: Workshop) -> int:
    """Make the queue; return an O_PATH descriptor of it.

    Raises:
        OSError: EINVAL: its limits are above those of this host (/proc/sys/fs/mqueue).
    """
    name, limits = state.name, (state.max_messages, state.message_bytes)
    with acting_as(state.uid, state.gid):
        try:
            fd = ipcabi.mq_make(name, state.mode, *limits)
        except FileExistsError:
            if state.linked:
                raise
            name = b".ckpt-" + os.urandom(8).hex().encode()
            fd = ipcabi.mq_make(name, state.mode, *limits)
    os.fchown(fd, state.uid, state.gid)
    os.fchmod(fd, state.mode)
    length = sum(length for _, length in state.messages)
    texts = workshop.load(state.first_page, length) if length else b""
    for priority, size in state.messages:
        ipcabi.mq_send(fd, texts[:size], priority)
        texts = texts[size:]
    if not state.linked:
        ipcabi.mq_unlink(name)
    queue = reopen(fd, os.O_PATH, workshop)
    os.close(fd)
    return workshop.temporary(queue)


def _collect_queue(number: int, path: str, name: bytes, linked: bool, dump: Dump) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        stat, (most, size) = os.fstat(fd), ipcabi.mq_limits(fd)
        if not os.pread(fd, 200, 0).rstrip().endswith(b"NOTIFY_PID:0"):
            what = f"POSIX message queue /{os.fsdecode(name)}"
            dump.refuse_pod(what, "a process is to be told when a message comes (mq_notify(3))")
            return False
        messages = [] if dump.looking_only else _take_and_put_back(fd, size)
    finally:
        os.close(fd)
    texts = b"".join(text for _, text in messages)
    state = ObjectState(
        name=name,
        linked=linked,
        uid=stat.st_uid,
        gid=stat.st_gid,
        mode=mode_bits.S_IMODE(stat.st_mode),
        max_messages=most,
        message_bytes=size,
        messages=[(priority, len(text)) for priority, text in messages],
        first_page=dump.store(texts) if texts else 0,
    )
    dump.set_object(number, state)
    return True


def _take_and_put_back(fd: int, size: int) -> list[tuple[int, bytes]]:
    """Return priority and text of each message, in order."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_fd)
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            data = msgspec.msgpack.encode(_turn(fd, size))
            with os.fdopen(write_fd, "wb") as report:
                report.write(data)
            status = 0
        finally:
            os._exit(status)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as report:
        data = report.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise OSError(errno.EIO, "the messages of a POSIX queue cannot be read")
    return msgspec.msgpack.decode(data, type=list[tuple[int, bytes]])


def _turn(fd: int, size: int) -> list[tuple[int, bytes]]:
    """Receive all messages and send them again: the order stays."""
    messages = []
    try:
        while True:
            messages.append(ipcabi.mq_receive(fd, size))
    except BlockingIOError:
        pass
    finally:
        for priority, text in messages:
            ipcabi.mq_send(fd, text, priority)
    return messages


def _device(dump: Dump) -> int:
    mount_fd = _mount(dump)
    try:
        return os.fstat(mount_fd).st_dev
    finally:
        os.close(mount_fd)


def _mount(dump: Dump) -> int:
    """Return the queues of the pod as a directory, mounted nowhere."""
    with ipcabi.inside(dump.init_host_pid):
        fs_fd = abi.fsopen("mqueue")
        try:
            abi.fsconfig(fs_fd, abi.FSCONFIG_CMD_CREATE)
            mount_fd = abi.fsmount(fs_fd, 0)
        finally:
            os.close(fs_fd)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount_fd)
    finally:
        os.close(mount_fd)
