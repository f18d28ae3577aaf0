"""What a kind of open file or shared object must offer, and what it is given.

A kind is a module in this package that is entered in ckpt/kinds/table.py. Dump side: the driver
duplicates each open file description once into the dumping process (pidfd_getfd(2)) and offers it
to the kinds in the table's order; the first whose recognises() is true collects it. Restart side:
one process, the *workshop*, stands in the pod's namespaces (all but the pid namespace), rebuilds
every open file there with ordinary system calls, and the pod's processes are then cloned from it,
inherit all of them, and dup3(2) each to its number. What needs other open files to stand first
(epoll_ctl(2)) happens in complete(), still in the workshop; what must be done by the process
itself, once its descriptors stand (POSIX locks, F_SETOWN, TIOCSCTTY), in finish().
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from ckpt.model import OpenFile

T = TypeVar("T")

Loader = Callable[[int, int], bytes]
"""Returns bytes that Dump.store() put into the archive: first page, length."""


class Source(msgspec.Struct, frozen=True):
    """An open file description of the frozen pod, as a collector sees it.

    Attributes:
        id: its OpenFile.id.
        host_pid: a process that has it open, numbered in the host's pid namespace.
        pid: the same process, numbered in the pod's.
        fd: its number there; -1 where it is only mapped, executed, or a process's directory.
        local_fd: our own duplicate: the same description, so never move its offset or change its
            flags. An O_PATH descriptor where fd is -1. Owned by the driver.
        link: what readlink(2) of /proc/PID/fd/FD gives.
        stat: fstat(2) of it.
        fdinfo: text of /proc/PID/fdinfo/FD; of our duplicate's where fd is -1.
        flags: O_* as fcntl(F_GETFL) gives them; where fd is -1, as the user of the file needs them.
        in_message: no process has it open: it is in a message that waits to be received, and fd
            means nothing.
    """

    id: int
    host_pid: int
    pid: int
    fd: int
    local_fd: int
    link: str
    stat: os.stat_result
    fdinfo: str
    flags: int
    in_message: bool = False


class Mount(msgspec.Struct, frozen=True):
    """A mount of the pod: a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).

    Attributes:
        id: mount id, as in fdinfo.
        device: st_dev of its files.
        point: where, seen from the pod's root.
        fstype: file-system type.
        whole: is it the whole file system, not a part of it?
        read_only: is it mounted read-only?
        parent: id of the mount that it is on.
        source: what was mounted, or a name (launcher.emulation.SOURCE).
        options: of the mount, separated by commas.
        super_options: of the file system.
    """

    id: int
    device: int
    point: bytes
    fstype: str
    whole: bool
    read_only: bool
    parent: int
    source: str
    options: str
    super_options: str


class Dump(Protocol):
    """What a collector may ask of the dump."""

    pod_root_fd: int
    """O_PATH descriptor of the pod's root in the pod's mount namespace (/proc/INIT/root)."""

    init_host_pid: int
    """Host pid of the pod's init: its mounts, network namespace and clocks are the pod's."""

    looking_only: bool
    """The pod may be running (`ckpt check`): ask for nothing that only a frozen pod can bear."""

    log_path: str
    """The launcher's log file on the host, which programs have as their output."""

    tcp: str
    """What is to become of TCP connections: "keep", "close" or "listen-only"."""

    mark: int
    """This host's in the overlay (launcher/overlay.py), 0 without: how connections came so far."""

    def hold_network(self, fd: int) -> None:
        """Let no packet pass, for *fd*, our duplicate of a connected socket, is about to be read.

        If this process is killed, packets pass again, and the socket leaves TCP's repair mode.
        """
        ...

    def file_id(self, host_pid: int, fd: int) -> int | None:
        """Return the OpenFile.id of descriptor *fd* of *host_pid*; None if it has no such."""
        ...

    def own_id(self, fd: int) -> int | None:
        """Return the OpenFile.id of what our own descriptor *fd* refers to; None if unknown."""
        ...

    def object_id(self, kind: str, key: object) -> tuple[int, bool]:
        """Return the id of the shared object *key* of *kind*, and whether it is new.

        The collector of the first sight then gives its state to set_object().
        """
        ...

    def set_object(self, object_id: int, state: msgspec.Struct) -> None:
        """Give the state of an object that object_id() said is new."""
        ...

    def mounts(self) -> Mapping[int, Mount]:
        """Return the mounts of the pod's mount namespace, by mount id."""
        ...

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what *make* returned when *name* was asked for first."""
        ...

    def pid_in_pod(self, host_pid: int) -> int | None:
        """Return what the pod's process *host_pid* is called there; None if it is no such."""
        ...

    def locked_descriptors(self, host_pid: int) -> Sequence[tuple[int, str]]:
        """Return number and fdinfo of the descriptors of *host_pid* whose files it has locked."""
        ...

    def store(self, data: bytes | memoryview) -> int:
        """Put bulk *data* (a queue, an unlinked file) into the page store.

        Returns the number of its first page; the last page is padded with zeros, so the kind
        keeps the length itself.
        """
        ...

    def sources(self) -> Sequence[Source]:
        """Return every open file description of the pod (to find the peer of a socket, …)."""
        ...

    def refuse(self, source: Source, why: str, hint: str = "") -> None:
        """Record that *source* cannot be carried over. The dump ends after the collection."""
        ...

    def refuse_process(self, host_pid: int, what: str, why: str, hint: str = "") -> None:
        """Record that something of the process *host_pid* cannot be carried over."""
        ...

    def refuse_pod(self, what: str, why: str, hint: str = "") -> None:
        """Record that something that belongs to no process cannot be carried over."""
        ...


class Workshop(Protocol):
    """What a rebuilder may use. It runs inside the pod's namespaces but for the pid namespace."""

    host_proc_fd: int
    """Directory descriptor of the host's /proc: the pod's own does not know the workshop."""

    log_fd: int
    """The launcher's log of the pod, opened O_WRONLY | O_APPEND."""

    def load(self, first_page: int, length: int) -> bytes:
        """Return *length* bytes that Dump.store() put at *first_page*."""
        ...

    def object(self, object_id: int) -> Any:  # noqa: ANN401 (each kind returns its own)
        """Return what rebuild_object() of its kind made of the object; made on first call."""
        ...

    def file(self, file_id: int) -> int:
        """Return the workshop's descriptor of the open file; rebuilt on first call.

        Raises:
            ValueError: the open files depend on one another in a circle.
        """
        ...

    def part(self, file_id: int, kind: str) -> Any:  # noqa: ANN401 (each kind has its own)
        """Return the state of an open file if it is of *kind*, else None."""
        ...

    def parts(self, kind: str) -> Mapping[int, Any]:
        """Return the states of all open files of *kind*, by OpenFile.id."""
        ...

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what *make* returned when *name* was asked for first."""
        ...

    def temporary(self, fd: int) -> int:
        """Have *fd* closed when every file is rebuilt and completed; return it."""
        ...

    def lend(self, path: bytes, directory_fd: int) -> None:
        """Have *path*, which is about to be made in *directory_fd*, go if the restart is killed."""
        ...

    def give_console(self, index: int, master_fd: int) -> None:
        """Hand the master of pseudo-terminal *index*, which was outside, to the pod's holder."""
        ...


class Remote(Protocol):
    """A stopped process of the pod in which system calls can be made."""

    pid: int
    """Its id in the pod."""

    def syscall(self, name: str, *args: int | bytes | bytearray) -> int:
        """Make the system call *name* there and return its result.

        bytes are copied there and passed by address; a bytearray is copied back afterwards, too.

        Raises:
            OSError: as the call does; `filename` is None, the text names call and process.
        """
        ...


class FileKind(Protocol):
    """A kind of open file description. Modules implement it with module-level functions."""

    @property
    def State(self) -> type[msgspec.Struct]:  # noqa: N802
        """The kind's part of the format."""
        ...

    def recognises(self, source: Source, dump: Dump) -> bool:
        """Is *source* of this kind?"""
        ...

    def collect(self, source: Source, dump: Dump) -> msgspec.Struct | None:
        """Return the state, without changing anything; None after dump.refuse()."""
        ...

    def rebuild(self, state: Any, file: OpenFile, workshop: Workshop) -> int:  # noqa: ANN401
        """Return a new descriptor of the rebuilt open file, with file.flags set; close-on-exec."""
        ...


class Carrying(Protocol):
    """A kind whose files can hold other open files."""

    def recognises(self, source: Source, dump: Dump) -> bool:
        """See FileKind."""
        ...

    def carried(self, source: Source, dump: Dump) -> Iterable[int]:
        """Return descriptors, which the caller owns then, of the files that *source* holds."""
        ...


class Completing(Protocol):
    """A kind whose files need a second step in the workshop, when every file is rebuilt."""

    def complete(self, state: Any, fd: int, workshop: Workshop) -> None:  # noqa: ANN401
        """Do to the workshop's *fd* what needs other open files."""
        ...


class Finishing(Protocol):
    """A kind that needs its process."""

    def finish(self, state: Any, file: OpenFile, fd: int, remote: Remote) -> None:  # noqa: ANN401
        """Do what the process must do itself now that the file stands at its number *fd*.

        Called once for each descriptor that refers to the file.
        """
        ...


class ObjectKind(Protocol):
    """A kind whose open files share a kernel object."""

    @property
    def ObjectState(self) -> type[msgspec.Struct]:  # noqa: N802
        """The object's part of the format."""
        ...

    def rebuild_object(self, state: Any, workshop: Workshop) -> Any:  # noqa: ANN401
        """Make the object; what is returned is for the kind's own rebuild()."""
        ...


class AttributeKind(Protocol):
    """Something that a file of any kind can have (OpenFile.attributes)."""

    @property
    def State(self) -> type[msgspec.Struct]:  # noqa: N802
        """Its part of the format."""
        ...

    def collect_attribute(self, source: Source, dump: Dump) -> msgspec.Struct | None:
        """Return the state; None if *source* has no such, or after dump.refuse()."""
        ...

    def rebuild_attribute(self, state: Any, fd: int) -> None:  # noqa: ANN401
        """Give it to the workshop's descriptor *fd*."""
        ...

    def finish_attribute(self, state: Any, fd: int, remote: Remote) -> None:  # noqa: ANN401
        """Do what the process must do itself; as Finishing.finish()."""
        ...


class ProcessKind(Protocol):
    """State of a process that concerns its open files (POSIX locks, controlling terminal)."""

    @property
    def ProcessState(self) -> type[msgspec.Struct]:  # noqa: N802
        """Its part of the format."""
        ...

    def collect_process(self, host_pid: int, dump: Dump) -> msgspec.Struct | None:
        """Return the state; None if the process has no such, or after dump.refuse_process()."""
        ...

    def finish_process(self, state: Any, remote: Remote) -> None:  # noqa: ANN401
        """Give it back to the process, whose descriptors stand."""
        ...


class PodKind(Protocol):
    """State of the pod as a whole that concerns files (contents of a tmpfs)."""

    @property
    def PodState(self) -> type[msgspec.Struct]:  # noqa: N802
        """Its part of the format."""
        ...

    def collect_pod(self, dump: Dump) -> Iterable[msgspec.Struct]:
        """Return the states, any number of them."""
        ...

    def rebuild_pod(self, state: Any, workshop: Workshop) -> None:  # noqa: ANN401
        """Rebuild one of them, before any open file."""
        ...


class FinishingPodKind(Protocol):
    """Such a kind that needs the processes."""

    def finish_pod(self, state: Any, remote: Remote) -> None:  # noqa: ANN401
        """Do in any process of the pod what can only follow when all have their memory."""
        ...
