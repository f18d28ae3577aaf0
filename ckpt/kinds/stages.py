"""What a kind of process-level state must offer, what it is given, and when it is rebuilt.

Some state belongs to a process (its signal actions), some to each thread (its credentials), and a
kind is a module with State, STAGE, collect() and rebuild(). At the dump all kinds of one process
are collected while it stands still. At the restart a stage is finished in all processes before the
next begins: what a later stage takes away (privileges, above all) an earlier one may need.
"""

import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

import msgspec

from ckpt import procfs
from ckpt.freeze import FrozenProcess
from ckpt.inject import Injection, Own
from ckpt.kinds.sysvsem import Semaphores
from ckpt.model import Process
from ckpt.remote import Remote
from ckpt.tracee import Memory, Tracee


class Stage(enum.IntEnum):
    """When a part is rebuilt.

    BUILD: the process has its descriptors and its memory, but no further thread yet.
    SETTLE: all processes and threads exist, with every privilege.
    CONFINE: privileges go.
    ARM: what may go off: timers, pending signals, and last the registers.
    """

    BUILD = 1
    SETTLE = 2
    CONFINE = 3
    ARM = 4


class Subject(msgspec.Struct, frozen=True):
    """A frozen process that is collected.

    Attributes:
        process: the process.
        mappings: its memory map, with flags.
        injection: makes calls in it.
        remote: its leader, borrowed.
        file_id: gives the OpenFile.id of "exe", "cwd", "root" or "map_files/A-B".
        tids: host thread id to the pod's.
        refuse: records what cannot be carried over: what, why, hint.
        semaphores: the pod's, of System V.
    """

    process: FrozenProcess
    mappings: list[procfs.Mapping]
    injection: Injection
    remote: Remote
    file_id: Callable[[str], int]
    tids: dict[int, int]
    refuse: Callable[[str, str, str], None]
    semaphores: Semaphores

    @property
    def host_pid(self) -> int:
        """Id in the host's pid namespace under which /proc shows what it has."""
        return self.process.view


class SubjectThread(msgspec.Struct, frozen=True):
    """A thread of a frozen process: its remote is borrowed from it, which has *own* for itself."""

    subject: Subject
    tracee: Tracee
    remote: Remote
    own: Own
    status: dict[str, str]


class Target(msgspec.Struct, frozen=True):
    """A process, or a thread of one, that is being rebuilt.

    Attributes:
        process: what it is to become.
        tid: id of the thread in the pod (of the first, for process state).
        host_pid: the same in the host's pid namespace.
        remote: makes calls in it.
        file: gives the descriptor of an OpenFile.id in it; before SETTLE only.
        note: records what could not be rebuilt fully, for the user.
        give_listener: hands the listener of a filter, which is open in it as this descriptor, to
            the pod's holder.
    """

    process: Process
    tid: int
    host_pid: int
    remote: Remote
    file: Callable[[int], int]
    note: Callable[[str], None]
    give_listener: Callable[[int], None]

    @property
    def tracee(self) -> Tracee:
        """The thread."""
        return self.remote.tracee

    @property
    def memory(self) -> Memory:
        """The process's memory."""
        return self.remote.memory


class ProcessStateKind(Protocol):
    """A kind of which each process has one."""

    State: type[msgspec.Struct]
    STAGE: Stage

    def collect(self, subject: Subject) -> msgspec.Struct:
        """Return the state."""
        ...

    def rebuild(self, state: Any, target: Target) -> None:  # noqa: ANN401 (each kind's own)
        """Give the process this state."""
        ...


class ThreadStateKind(Protocol):
    """A kind of which each thread has one."""

    State: type[msgspec.Struct]
    STAGE: Stage

    def collect(self, thread: SubjectThread) -> msgspec.Struct:
        """Return the state."""
        ...

    def rebuild(self, state: Any, target: Target) -> None:  # noqa: ANN401 (each kind's own)
        """Give the thread this state."""
        ...


def name_of(kind: ModuleType) -> str:
    """Return the name under which a kind's parts stand in the model."""
    return kind.__name__.rpartition(".")[2]
