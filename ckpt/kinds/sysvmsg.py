"""System V message queues: msgget(2)."""

import errno
from collections.abc import Iterator

import msgspec

from ckpt.kinds import ipcabi, sysvipc
from ckpt.kinds.protocol import Dump, Workshop
from ckpt.kinds.sysvipc import Permissions


class PodState(msgspec.Struct, frozen=True):
    """A queue.

    Attributes:
        permissions: number, key, owner.
        qbytes: how much may wait in it.
        messages: type and length of each, in order.
        first_page: of their texts, one after another, in the archive.
    """

    permissions: Permissions
    qbytes: int
    messages: list[tuple[int, int]]
    first_page: int


def collect_pod(dump: Dump) -> list[PodState]:
    """See protocol.PodKind."""
    with sysvipc.listing("msg", dump.init_host_pid) as lines:
        return [state for line in lines if (state := _queue(line, dump)) is not None]


def _queue(line: dict[str, int], dump: Dump) -> PodState | None:
    wanted = sysvipc.permissions(line)
    stat = ipcabi.msg_stat(wanted.id)
    try:
        messages = list(_messages(wanted.id, stat)) if not dump.looking_only else []
    except OSError as e:
        if e.errno != errno.ENOSYS:
            raise
        what = f"System V message queue {wanted.id}"
        dump.refuse_pod(what, "this kernel does not let its messages be read without taking them")
        return None
    texts = b"".join(text for _, text in messages)
    return PodState(
        wanted,
        stat.qbytes,
        [(kind, len(text)) for kind, text in messages],
        dump.store(texts) if texts else 0,
    )


def _messages(number: int, stat: ipcabi.msqid64_ds) -> Iterator[tuple[int, bytes]]:
    return (ipcabi.msg_peek(number, place, stat.cbytes) for place in range(stat.qnum))


def rebuild_pod(state: PodState, workshop: Workshop) -> None:
    """See protocol.PodKind.

    Raises:
        OSError: EPERM: this host does not let a queue be so long.
    """
    wanted = state.permissions
    number = sysvipc.make("msg", wanted, lambda flags: ipcabi.msgget(wanted.key, flags), workshop)
    length = sum(length for _, length in state.messages)
    texts = memoryview(workshop.load(state.first_page, length) if length else b"")
    if length > ipcabi.msg_stat(number).qbytes:
        ipcabi.msg_set(number, wanted.uid, wanted.gid, wanted.mode, length)
    for kind, size in state.messages:
        ipcabi.msg_send(number, kind, bytes(texts[:size]))
        texts = texts[size:]
    ipcabi.msg_set(number, wanted.uid, wanted.gid, wanted.mode, state.qbytes)
