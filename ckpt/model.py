"""The intermediate format: what a pod is made of, in names and meanings.

A leaf: structures only. Nothing here is a kernel number; what a kernel would number differently
(flags, signals, options) is a name from ckpt/names.py. Each kind of kernel object keeps its own
structure in its module under ckpt/kinds and stands here as a named, still encoded part, so that
this module, the archive and the drivers do not know the kinds.

Encoded as MessagePack maps with the field names below; docs/format.md is normative.
"""

from typing import Final

import msgspec

MODEL_VERSION: Final = 1
# 1: first version.

PAGE_SIZE: Final = 4096
"""Bytes in a page of the archive, whatever the page size of the machine."""


class Part(msgspec.Struct, frozen=True):
    """State of one kind: *kind* names its module in ckpt/kinds, *state* is that module's State."""

    kind: str
    state: msgspec.Raw


class Object(msgspec.Struct, frozen=True):
    """A kernel object that several open files, mappings or processes can share.

    Examples: a pipe (its two ends are open files), a pty, an unlinked inode, shared memory.
    """

    id: int
    part: Part


class OpenFile(msgspec.Struct, frozen=True):
    """An open file description (open(2), "Open file descriptions").

    Descriptors that dup(2), fork(2) or SCM_RIGHTS made share one.

    Attributes:
        id: its number, the index in Pod.files.
        flags: access mode and status flags, as names ("rdonly", "append", "nonblock", …).
        part: what is open.
        attributes: what a file of any kind can have besides: locks, an owner for its signals.
    """

    id: int
    flags: list[str]
    part: Part
    attributes: list[Part] = []


class Descriptor(msgspec.Struct, frozen=True):
    """A slot of a process's descriptor table: number, OpenFile.id, close-on-exec."""

    fd: int
    file: int
    cloexec: bool


class Thread(msgspec.Struct, frozen=True):
    """A thread, by its id in the pod; parts are ordered as they are restored."""

    tid: int
    parts: list[Part]


class Process(msgspec.Struct, frozen=True):
    """A process, by its ids in the pod.

    Attributes:
        pid: process id in the pod's pid namespace.
        parent: pid of the parent; 1 where it is the pod's init, or outside of the pod.
        group: process group id.
        session: session id.
        exit_status: wait status (wait(2)) of a zombie, None for a living process. A zombie has
            neither threads, nor descriptors, nor parts.
        descriptors: its table, by ascending fd.
        threads: the leader first, unless it has ended before others, then by ascending tid.
        parts: memory, credentials, signals, timers, …, ordered as they are restored.
    """

    pid: int
    parent: int
    group: int
    session: int
    exit_status: int | None
    descriptors: list[Descriptor]
    threads: list[Thread]
    parts: list[Part]


class Clocks(msgspec.Struct, frozen=True):
    """The pod's clocks at the freeze, in nanoseconds (clock_gettime(2))."""

    monotonic_ns: int
    boottime_ns: int
    realtime_ns: int


class Pod(msgspec.Struct, frozen=True):
    """Everything of a pod but its memory pages and its files.

    Attributes:
        version: MODEL_VERSION of the writer.
        name: the pod's name.
        architecture: as `uname -m`; registers and seccomp programs are its.
        clocks: at the freeze.
        processes: parents before children; the pod's init is not among them.
        files: open file descriptions, by id.
        objects: shared kernel objects, by id.
        parts: what belongs to the pod as a whole (host name, contents of its tmpfs, …).
    """

    version: int
    name: str
    architecture: str
    clocks: Clocks
    processes: list[Process]
    files: list[OpenFile]
    objects: list[Object]
    parts: list[Part]


class Refusal(msgspec.Struct, frozen=True):
    """Why a pod cannot be checkpointed: one thing in one process.

    Attributes:
        pid: process id in the pod.
        command: name of the process (comm).
        what: the object, as a user would name it ("descriptor 7", "mapping 7f…-7f…").
        why: the reason, a clause in lower case without full stop.
        hint: what to do about it, or "".
    """

    pid: int
    command: str
    what: str
    why: str
    hint: str = ""

    def __str__(self) -> str:  # type: ignore[explicit-override]
        return f"process {self.pid} ({self.command}): {self.what}: {self.why}"


class NotCheckpointable(Exception):  # noqa: N818 (it is a finding, not a fault)
    """The pod holds something that this version cannot carry over; nothing was changed."""

    def __init__(self, *refusals: Refusal) -> None:
        super().__init__("; ".join(map(str, refusals)))
        self.refusals = refusals

    @property
    def findings(self) -> list[tuple[str, str]]:
        """Message and hint of each refusal."""
        return [(str(refusal), refusal.hint) for refusal in self.refusals]
