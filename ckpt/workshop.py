"""The workshop: rebuilds the open files of a pod by ordinary system calls.

It stands in the pod's mount, network, ipc, uts, cgroup and time namespaces but in the host's pid
namespace; the pod's processes are cloned from it and so inherit what it rebuilt. It is
single-threaded and drives the kinds of ckpt/kinds/table.py.
"""

import contextlib
import fcntl
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from ckpt.archive.errors import FormatError
from ckpt.kinds import pty, table, terminal
from ckpt.kinds.protocol import Completing, Remote
from ckpt.model import Object, OpenFile, Part, Process
from ckpt.states import state_of

T = TypeVar("T")


class FileWorkshop:
    """Rebuilds open files; implements protocol.Workshop.

    Args:
        files: the open file descriptions of the pod.
        objects: what they share.
        load: returns the bytes that the dump stored, by first page and length.
        host_proc_fd: directory descriptor of the host's /proc. Not owned.
        log_fd: the pod's log, O_WRONLY | O_APPEND. Not owned.
        floor_fd: rebuilt files get descriptors from here on; the pod uses none of them.
        give_console: hands over the master of a pty that was outside of the pod.
        lent_fd: takes the names that are lent, each ending in a zero byte, O_APPEND; or None.
    """

    def __init__(  # noqa: PLR0913 (what the engine has to give)
        self,
        files: Sequence[OpenFile],
        objects: Sequence[Object],
        *,
        load: Callable[[int, int], bytes],
        host_proc_fd: int,
        log_fd: int,
        floor_fd: int,
        give_console: Callable[[int, int], None],
        lent_fd: int | None = None,
    ) -> None:
        self.host_proc_fd = host_proc_fd
        self.log_fd = log_fd
        self.give_console = give_console
        self.load = load
        self._lent_fd = lent_fd
        self._floor_fd = floor_fd
        self._files = {file.id: file for file in files}
        self._objects = {shared.id: shared for shared in objects}
        self._rebuilt: dict[int, int] = {}
        self._made: dict[int, Any] = {}
        self._under_way: list[int] = []
        self._temporaries: list[int] = []
        self._known: dict[str, Any] = {}

    def rebuild_pod(self, parts: Sequence[Part]) -> None:
        """Rebuild what belongs to the pod as a whole; before rebuild().

        Parts of kinds that are not ours are left to their owners.
        """
        for part in parts:
            kind = table.find(part.kind)
            if kind in table.POD_KINDS:
                kind.rebuild_pod(_state(part, kind.PodState), self)

    def rebuild(self) -> dict[int, int]:
        """Rebuild every open file.

        Returns:
            OpenFile.id to descriptor: at least floor_fd, close-on-exec, owned by the caller.

        Raises:
            OSError: a system call failed; notes tell for which file.
            ValueError: the archive's model makes no sense.
        """
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for file_id in self._files:
            self.file(file_id)
        for object_id in self._objects:
            self.object(object_id)
        self._complete(table.COMPLETING_KINDS)
        # Closing a file is an event, too: the kinds that watch files come after it.
        while self._temporaries:
            os.close(self._temporaries.pop())
        self._complete(table.WATCHING_KINDS)
        return self._rebuilt

    def _complete(self, kinds: Sequence[Completing]) -> None:
        for kind in kinds:
            for file in self._files.values():
                if table.named(file.part.kind) is kind:
                    state = _state(file.part, table.named(file.part.kind).State)
                    with _noting(file):
                        kind.complete(state, self._rebuilt[file.id], self)

    def take_terminal(self, process: Process, remote: Remote) -> None:
        """Have *process*, which has just called setsid(2), take its controlling terminal.

        Its children inherit the terminal, so they are cloned afterwards. Like finish(), it needs
        nothing but the model.
        """
        for part in process.parts:
            if part.kind == table.name(terminal):
                state = _state(part, terminal.ProcessState)
                pair = _state(self._objects[state.pty].part, pty.ObjectState)
                terminal.take(state, pair, remote)

    def finish(self, process: Process, remote: Remote) -> None:
        """Do what *process* must do itself; all processes and their descriptors stand.

        Needs nothing of the workshop but the model, so that it may be called in another process
        than rebuild().

        Raises:
            OSError: a system call failed there.
        """
        for part in process.parts:
            kind = table.find(part.kind)
            if kind in table.PROCESS_KINDS:
                kind.finish_process(_state(part, kind.ProcessState), remote)
        for kind in table.FINISHING_KINDS:
            for descriptor in process.descriptors:
                file = self._files[descriptor.file]
                if table.named(file.part.kind) is kind:
                    kind.finish(_state(file.part, kind.State), file, descriptor.fd, remote)
        for descriptor in process.descriptors:
            for part in self._files[descriptor.file].attributes:
                kind = table.named(part.kind)
                kind.finish_attribute(_state(part, kind.State), descriptor.fd, remote)

    def finish_pod(self, parts: Sequence[Part], remote: Remote) -> None:
        """Do in any process of the pod what needs all to have their memory; like finish()."""
        for part in parts:
            kind = table.find(part.kind)
            if kind in table.FINISHING_POD_KINDS:
                kind.finish_pod(_state(part, kind.PodState), remote)

    # --- protocol.Workshop -----------------------------------------------------------------

    def object(self, object_id: int) -> Any:  # noqa: ANN401 (each kind returns its own)
        """See protocol.Workshop."""
        if object_id not in self._made:
            part = self._objects[object_id].part
            kind = table.named(part.kind)
            self._made[object_id] = kind.rebuild_object(_state(part, kind.ObjectState), self)
        return self._made[object_id]

    def file(self, file_id: int) -> int:
        """See protocol.Workshop."""
        if file_id in self._rebuilt:
            return self._rebuilt[file_id]
        if file_id in self._under_way:
            raise ValueError(f"open files {self._under_way} depend on one another in a circle")
        file = self._files[file_id]
        kind = table.named(file.part.kind)
        self._under_way.append(file_id)
        with _noting(file):
            fd = kind.rebuild(_state(file.part, kind.State), file, self)
            self._rebuilt[file_id] = fd = self._lift(fd)
            for part in file.attributes:
                attribute = table.named(part.kind)
                attribute.rebuild_attribute(_state(part, attribute.State), fd)
        self._under_way.pop()
        return fd

    def part(self, file_id: int, kind: str) -> Any:  # noqa: ANN401 (each kind has its own)
        """See protocol.Workshop."""
        part = self._files[file_id].part
        return _state(part, table.named(kind).State) if part.kind == kind else None

    def parts(self, kind: str) -> Mapping[int, Any]:
        """See protocol.Workshop."""
        form = table.named(kind).State
        return {
            file.id: _state(file.part, form)
            for file in self._files.values()
            if file.part.kind == kind
        }

    def once(self, name: str, make: Callable[[], T]) -> T:
        """See protocol.Workshop."""
        if name not in self._known:
            self._known[name] = make()
        known: T = self._known[name]
        return known

    def temporary(self, fd: int) -> int:
        """See protocol.Workshop."""
        self._temporaries.append(fd)
        return fd

    def lend(self, path: bytes, directory_fd: int) -> None:
        """See protocol.Workshop. Other file systems than the root's go with the pod."""
        if self._lent_fd is not None and os.fstat(directory_fd).st_dev == os.stat("/").st_dev:
            os.write(self._lent_fd, path + b"\0")

    def _lift(self, fd: int) -> int:
        """Move *fd* to the floor or above."""
        if fd >= self._floor_fd:
            return fd
        lifted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self._floor_fd)
        os.close(fd)
        return lifted


def _state(part: Part, form: type[msgspec.Struct]) -> Any:  # noqa: ANN401 (each kind has its own)
    """Decode the state of *part*.

    Raises:
        FormatError: it is not of that form.
    """
    return state_of(part, form)


@contextlib.contextmanager
def _noting(file: OpenFile) -> Iterator[None]:
    """Say in an error which file it was about."""
    try:
        yield
    except (OSError, ValueError, FormatError) as e:
        e.add_note(f"while rebuilding open file {file.id}, a {file.part.kind}")
        raise
