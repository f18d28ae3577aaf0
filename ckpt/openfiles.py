"""The open files of a frozen pod, collected.

What is one open file description in the kernel is one model.OpenFile, whoever shares it. This
module finds the descriptions (kcmp(2)), duplicates each once (pidfd_getfd(2)) and drives the kinds
of ckpt/kinds/table.py, which know what is behind them; a description that no kind recognises is
refused. Nothing of the pod is changed, and everything is looked at before anything is collected,
so that a kind sees all open files of the pod (both ends of a pipe, the peer of a socket).

It runs while the pod stands still: a descriptor costs five short system calls, a description some
more. With store=None it only looks, and then the pod may be running (`ckpt check`).
"""

import errno
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec

from ckpt.descriptions import Files, describe, search
from ckpt.kinds import abi, flags, late, procinfo, table
from ckpt.kinds.protocol import Mount, Source
from ckpt.model import PAGE_SIZE, Descriptor, Object, OpenFile, Part, Refusal
from launcher.commandline import printable

T = TypeVar("T")

_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.EBADF)
_VIEWS: Final = {"map_files": "mapping of", "exe": "program", "cwd": "directory", "root": "root"}


class _Shared(msgspec.Struct):
    """A shared object on its way: its kind is known at once, its state a little later."""

    kind: str
    state: msgspec.Struct | None = None


class _Process(msgspec.Struct):
    host_pid: int
    pid: int
    view: int
    descriptors: list[Descriptor] = msgspec.field(default_factory=list)
    locked: list[tuple[int, str]] = msgspec.field(default_factory=list)


class FileCollector:
    """Collects the open files of one pod; implements protocol.Dump.

    Args:
        pod_root_fd: O_PATH descriptor of the pod's root, opened as /proc/INIT/root. Not owned.
        init_host_pid: the pod's init.
        log_path: the launcher's log of the pod.
        store: puts bulk data into the archive and returns its first page; None only looks.
        tcp, mark, hold_network: see protocol.Dump.
    """

    def __init__(  # noqa: PLR0913 (all by name)
        self,
        *,
        pod_root_fd: int,
        init_host_pid: int,
        log_path: str,
        store: Callable[[bytes | memoryview], int] | None,
        tcp: str = "keep",
        mark: int = 0,
        hold_network: Callable[[int], None] = lambda _fd: None,
    ) -> None:
        self.tcp = tcp
        self.mark = mark
        self.hold_network = hold_network
        self.pod_root_fd = pod_root_fd
        self.init_host_pid = init_host_pid
        self.log_path = log_path
        self.looking_only = store is None
        self._store = store
        self._processes: dict[int, _Process] = {}
        self._sources: list[Source] = []
        self._buckets: dict[tuple[int, ...], list[Source]] = {}
        self._paths: dict[tuple[object, ...], int] = {}
        self._views: dict[int, str] = {}
        self._ids: dict[tuple[int, int], int] = {}
        self._objects: dict[tuple[str, object], int] = {}
        self._shared: list[_Shared] = []
        self._refusals: list[Refusal] = []
        # A duplicate of each: the pod may have more open than one process usually may.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._memory: dict[str, Any] = {}

    def __enter__(self) -> "FileCollector":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every duplicate.

        The program's own POSIX locks stay: they go when their owner closes the file, and we are
        not their owner (fcntl_locking(2), "Record locks").
        """
        while self._sources:
            os.close(self._sources.pop().local_fd)

    def add_process(self, host_pid: int, pid: int, view: int | None = None) -> None:
        """Find the descriptors of a stopped process; *view*: a thread that lives, else the first.

        Raises:
            OSError: it cannot be read, or is gone.
        """
        process = self._processes[host_pid] = _Process(host_pid, pid, view or host_pid)
        pidfd = abi.pidfd_open(process.view)
        try:
            for fd in sorted(map(int, os.listdir(f"/proc/{process.view}/fd"))):
                try:
                    self._add_descriptor(process, pidfd, fd)
                except OSError as e:
                    if not self._may_be_gone(e):
                        raise
        finally:
            os.close(pidfd)

    def add_path(self, host_pid: int, pid: int, proc_path: str) -> int:
        """Return the OpenFile.id of a file that a process uses without a descriptor.

        Args:
            host_pid: the process, in the host's numbers.
            pid: the process, in the pod's.
            proc_path: `/proc/HOSTPID/` and `map_files/A-B`, `exe`, `cwd` or `root`.

        Raises:
            OSError: it cannot be read, or is gone.
        """
        view = proc_path.split("/")[3]
        local_fd = os.open(proc_path, os.O_PATH)
        stat, link = os.fstat(local_fd), os.readlink(proc_path)
        access = procinfo.view_flags(view, os.lstat(proc_path).st_mode)
        key = (stat.st_dev, stat.st_ino, link, access)
        if key in self._paths:
            os.close(local_fd)
            return self._paths[key]
        source = Source(
            id=len(self._sources),
            host_pid=host_pid,
            pid=pid,
            fd=-1,
            local_fd=local_fd,
            link=link,
            stat=stat,
            fdinfo=_read(f"/proc/self/fdinfo/{local_fd}").decode(),
            flags=access,
        )
        self._sources.append(source)
        self._views[source.id] = _VIEWS[view]
        self._paths[key] = source.id
        return source.id

    def _add_descriptor(self, process: _Process, pidfd: int, fd: int) -> None:
        text = _read(f"/proc/{process.view}/fdinfo/{fd}")
        head = procinfo.parse_fdinfo(text)
        key = (head.position, head.flags, head.mount, head.inode)
        bucket = self._buckets.setdefault(key, [])
        at, known = search(bucket, process.view, fd)
        if known is None:
            known = self._duplicate(process, pidfd, fd, text.decode(), head.flags)
            bucket.insert(at, known)
        self._ids[process.host_pid, fd] = known.id
        process.descriptors.append(Descriptor(fd=fd, file=known.id, cloexec=head.cloexec))
        if b"\nlock:" in text:
            process.locked.append((fd, text.decode()))

    def _duplicate(
        self, process: _Process, pidfd: int, fd: int, fdinfo: str, status: int
    ) -> Source:
        link = os.readlink(f"/proc/{process.view}/fd/{fd}")
        local_fd = abi.pidfd_getfd(pidfd, fd)
        source = Source(
            id=len(self._sources),
            host_pid=process.host_pid,
            pid=process.pid,
            fd=fd,
            local_fd=local_fd,
            link=link,
            stat=os.fstat(local_fd),
            fdinfo=fdinfo,
            flags=status,
        )
        self._sources.append(source)
        return source

    # --- protocol.Dump ---------------------------------------------------------------------

    def file_id(self, host_pid: int, fd: int) -> int | None:
        """See protocol.Dump."""
        return self._ids.get((host_pid, fd))

    def own_id(self, fd: int) -> int | None:
        """See protocol.Dump."""
        *_, known = self._look_up(fd)
        return known.id if known else None

    def object_id(self, kind: str, key: object) -> tuple[int, bool]:
        """See protocol.Dump."""
        known = self._objects.get((kind, key))
        if known is not None:
            return known, False
        self._objects[kind, key] = number = len(self._shared)
        self._shared.append(_Shared(kind))
        return number, True

    def set_object(self, object_id: int, state: msgspec.Struct) -> None:
        """See protocol.Dump."""
        self._shared[object_id].state = state

    def store(self, data: bytes | memoryview) -> int:
        """See protocol.Dump."""
        if self._store is None:
            return 0
        missing = -len(data) % PAGE_SIZE
        return self._store(bytes(data) + bytes(missing) if missing else data)

    def sources(self) -> Sequence[Source]:
        """See protocol.Dump."""
        return self._sources

    def locked_descriptors(self, host_pid: int) -> Sequence[tuple[int, str]]:
        """See protocol.Dump."""
        return self._processes[host_pid].locked

    def once(self, name: str, make: Callable[[], T]) -> T:
        """See protocol.Dump."""
        if name not in self._memory:
            self._memory[name] = make()
        return cast(T, self._memory[name])

    def mounts(self) -> Mapping[int, Mount]:
        """See protocol.Dump."""
        return self.once("mounts", self._read_mounts)

    def pid_in_pod(self, host_pid: int) -> int | None:
        """See protocol.Dump."""
        return self.once("ids", self._read_ids).get(host_pid)

    def refuse(self, source: Source, why: str, hint: str = "") -> None:
        """See protocol.Dump."""
        if source.id in self._views:
            what = f"{self._views[source.id]} {printable(source.link)}"
        else:
            what = f"descriptor {source.fd} ({printable(source.link)})"
        self._refuse(source.host_pid, source.pid, what, why, hint)

    def refuse_process(self, host_pid: int, what: str, why: str, hint: str = "") -> None:
        """See protocol.Dump."""
        self._refuse(host_pid, self._processes[host_pid].pid, what, why, hint)

    def refuse_pod(self, what: str, why: str, hint: str = "") -> None:
        """See protocol.Dump."""
        self._refusals.append(Refusal(1, "init", what, why, hint))

    def _read_mounts(self) -> dict[int, Mount]:
        text = _read(f"/proc/{self.init_host_pid}/mountinfo")
        return {mount.id: mount for mount in procinfo.parse_mounts(text)}

    def _read_ids(self) -> dict[int, int]:
        ids: dict[int, int] = {}
        for host_pid in self._processes:
            for task in os.listdir(f"/proc/{host_pid}/task"):
                ids.update(procinfo.parse_ids(_read(f"/proc/{host_pid}/task/{task}/status")))
        return ids

    def _refuse(self, host_pid: int, pid: int, what: str, why: str, hint: str) -> None:
        try:
            command = printable(os.fsdecode(_read(f"/proc/{host_pid}/comm")).rstrip("\n"))
        except OSError as e:
            if not self._may_be_gone(e):
                raise
            return
        self._refusals.append(Refusal(pid, command, what, why, hint))

    def _may_be_gone(self, error: OSError) -> bool:
        """Is it no wonder, for the pod may be running?"""
        return self.looking_only and error.errno in _GONE

    # --- collecting ------------------------------------------------------------------------

    def finish(self) -> Files:
        """Have the kinds collect everything that was found.

        Raises:
            OSError: the pod changed meanwhile, or a system call failed.
        """
        self._add_carried()
        files = [file for source in self._sources if (file := self._collect(source)) is not None]
        process_parts = {p.pid: self._collect_process(p) for p in self._processes.values()}
        pod_parts = [
            _part(kind, state) for kind in table.POD_KINDS for state in kind.collect_pod(self)
        ]
        objects = [
            Object(id=number, part=_part(table.named(shared.kind), shared.state))
            for number, shared in enumerate(self._shared)
            if shared.state is not None
        ]
        descriptors = {p.pid: p.descriptors for p in self._processes.values()}
        return Files(files, objects, descriptors, process_parts, pod_parts, self._refusals)

    def _add_carried(self) -> None:
        """Find the files that are only in messages, and in messages of such files."""
        for source in self._sources:  # it grows meanwhile
            for kind in table.CARRYING_KINDS:
                if source.fd >= 0 and kind.recognises(source, self):
                    for fd in kind.carried(source, self):
                        self._add_message_file(source, fd)

    def _add_message_file(self, carrier: Source, fd: int) -> None:
        """Take *fd*, which a message in *carrier* holds."""
        text, bucket, at, known = self._look_up(fd)
        if known is not None:
            os.close(fd)
            return
        source = msgspec.structs.replace(
            carrier,
            id=len(self._sources),
            fd=fd,
            local_fd=fd,
            link=os.readlink(f"/proc/self/fd/{fd}"),
            stat=os.fstat(fd),
            fdinfo=text.decode(),
            flags=procinfo.parse_fdinfo(text).flags,
            in_message=True,
        )
        self._sources.append(source)
        bucket.insert(at, source)
        self._views[source.id] = f"file in a message at descriptor {carrier.fd},"

    def _look_up(self, fd: int) -> tuple[bytes, list[Source], int, Source | None]:
        """Return fdinfo of our *fd*, the bucket it belongs to, its place there, and itself."""
        text = _read(f"/proc/self/fdinfo/{fd}")
        head = procinfo.parse_fdinfo(text)
        key = (head.position, head.flags, head.mount, head.inode)
        bucket = self._buckets.setdefault(key, [])
        return text, bucket, *search(bucket, os.getpid(), fd)

    def _collect_process(self, process: _Process) -> list[Part]:
        parts = []
        for kind in table.PROCESS_KINDS:
            try:
                state = kind.collect_process(process.host_pid, self)
            except OSError as e:
                if not self._may_be_gone(e):
                    e.add_note(f"while collecting {table.name(kind)} of process {process.pid}")
                    raise
                continue
            if state is not None:
                parts.append(_part(kind, state))
        return parts

    def _collect(self, source: Source) -> OpenFile | None:
        try:
            return self._collect_file(source)
        except PermissionError as e:
            self.refuse(source, e.strerror or str(e))
        except OSError as e:
            if not self._may_be_gone(e):
                e.add_note(f"while collecting {source.link} of process {source.pid}")
                raise
        return None

    def _collect_file(self, source: Source) -> OpenFile | None:
        try:
            names = flags.open_flag_names(source.flags)
        except ValueError as e:
            self.refuse(source, f"it is open with {e}")
            return None
        if source.in_message and late.is_late(source):
            self.refuse(source, "only the process that receives it can open it", "try again later")
            return None
        for kind in table.FILE_KINDS:
            if kind.recognises(source, self):
                state = kind.collect(source, self)
                break
        else:
            self.refuse(source, f"{describe(source)} cannot be carried over")
            return None
        if state is None:
            return None
        attributes = [
            _part(attribute, found)
            for attribute in table.ATTRIBUTE_KINDS
            if source.fd >= 0 and (found := attribute.collect_attribute(source, self)) is not None
        ]
        return OpenFile(source.id, names, _part(kind, state), attributes)


def _part(kind: object, state: msgspec.Struct) -> Part:
    """Return the encoded *state* of *kind*, a module of ckpt/kinds."""
    return Part(table.name(kind), msgspec.Raw(msgspec.msgpack.encode(state)))


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()
