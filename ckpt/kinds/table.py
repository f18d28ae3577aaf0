"""All kinds of open files, and in which order they are asked.

To add a kind: write its module (protocol.py says what it must offer), enter it here, and give it
a workload under tests/workloads.
"""

from typing import Any, Final

from ckpt.kinds import (
    device,
    epoll,
    eventfd,
    inotify,
    locks,
    log,
    memfd,
    mounts,
    mqueue,
    netlink,
    owner,
    packet,
    pidfd,
    pipe,
    procfile,
    pty,
    raw,
    regular,
    shared_memory,
    signalfd,
    sysvmsg,
    sysvsem,
    sysvshm,
    tcp,
    terminal,
    timerfd,
    tmpfs,
    udp,
    unix,
)
from ckpt.kinds.protocol import (
    AttributeKind,
    Carrying,
    Completing,
    FileKind,
    Finishing,
    FinishingPodKind,
    PodKind,
    ProcessKind,
)

FILE_KINDS: Final[tuple[FileKind, ...]] = (
    epoll,
    eventfd,
    timerfd,
    signalfd,
    inotify,
    pidfd,
    tcp,
    udp,
    raw,
    unix,
    netlink,
    packet,
    pipe,
    pty,
    device,
    log,
    memfd,
    procfile,
    shared_memory,
    mqueue,
    regular,
)
"""The first that recognises a file collects it; regular, which goes by the path, comes last."""

CARRYING_KINDS: Final[tuple[Carrying, ...]] = (unix,)
"""Can hold open files that no process has."""

COMPLETING_KINDS: Final[tuple[Completing, ...]] = (unix, tcp, udp, epoll)
"""Need a second step in the workshop, in this order."""

WATCHING_KINDS: Final[tuple[Completing, ...]] = (inotify,)
"""The same, but after the workshop has closed what it opened meanwhile."""

FINISHING_KINDS: Final[tuple[Finishing, ...]] = (pidfd, device, procfile, memfd, epoll)
"""Need a step of the process itself, in this order: those which replace a file, then epoll."""

ATTRIBUTE_KINDS: Final[tuple[AttributeKind, ...]] = (locks, owner)
PROCESS_KINDS: Final[tuple[ProcessKind, ...]] = (terminal, locks)
POD_KINDS: Final[tuple[PodKind, ...]] = (mounts, tmpfs, sysvshm, sysvsem, sysvmsg, mqueue)
"""In this order: what is in a tmpfs comes after its mount."""

FINISHING_POD_KINDS: Final[tuple[FinishingPodKind, ...]] = (sysvshm,)
"""Need a process of the pod."""


def name(kind: Any) -> str:  # noqa: ANN401 (a module)
    """Return what *kind* is called in the archive: the name of its module."""
    return str(kind.__name__).rpartition(".")[2]


_BY_NAME: Final[dict[str, Any]] = {
    name(kind): kind for kind in (*FILE_KINDS, *ATTRIBUTE_KINDS, *PROCESS_KINDS, *POD_KINDS)
}


def find(kind: str) -> Any:  # noqa: ANN401 (a module)
    """Return the module of *kind*, None if it is not one of open files."""
    return _BY_NAME.get(kind)


def named(kind: str) -> Any:  # noqa: ANN401 (a module)
    """Return the module of *kind*.

    Raises:
        ValueError: there is none.
    """
    module = find(kind)
    if module is None:
        raise ValueError(f"unknown kind of open file {kind!r}")
    return module
