"""Open file descriptions: what is known of a pod's, told apart, and told in words."""

import contextlib
import os
import socket
from collections.abc import Sequence

import msgspec

from ckpt.kinds import abi, sockets
from ckpt.kinds.protocol import Source
from ckpt.model import Descriptor, Object, OpenFile, Part, Refusal


class Files(msgspec.Struct, frozen=True):
    """What was collected; of no use but for the reasons where there are refusals.

    Attributes:
        files: open file descriptions; add_path() and Descriptor.file give their ids.
        objects: kernel objects that several of them share.
        descriptors: descriptor table of each process, by its pid in the pod.
        process_parts: what a process must do itself at the restart, by its pid in the pod.
        pod_parts: what belongs to the pod as a whole.
        refusals: why the pod cannot be checkpointed.
    """

    files: list[OpenFile]
    objects: list[Object]
    descriptors: dict[int, list[Descriptor]]
    process_parts: dict[int, list[Part]]
    pod_parts: list[Part]
    refusals: list[Refusal]


def search(bucket: Sequence[Source], host_pid: int, fd: int) -> tuple[int, Source | None]:
    """Find the description of *fd* among *bucket*, which is in kcmp(2)'s order.

    Returns its place there, or the one where it belongs, and the Source if it is known.
    """
    low, high, own = 0, len(bucket), os.getpid()
    while low < high:
        middle = (low + high) // 2
        order = abi.kcmp(own, host_pid, abi.KCMP_FILE, bucket[middle].local_fd, fd)
        if order == 0:
            return middle, bucket[middle]
        if order == 1:
            low = middle + 1
        else:
            high = middle
    return low, None


def describe(source: Source) -> str:
    """Return what *source* is, for a person."""
    domain, kind, protocol = sockets.family(source)
    if domain < 0:
        return "this kind of file"
    with contextlib.suppress(ValueError):
        names = (socket.AddressFamily(domain).name, socket.SocketKind(kind).name)
        return f"a socket of {' '.join(names)} protocol {protocol}"
    return f"a socket of family {domain}"
