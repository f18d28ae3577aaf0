"""The workshop process, which rebuilds the open files, and the seed, from which all else is cloned.

The workshop is a child of this command in the pod's namespaces, all but the pid namespace: the
barrier lets it pass, and the pod's programs cannot see it. It rebuilds every open file and then
clones the seed into the pod's pid namespace, which thereby inherits them. The seed waits to be
traced. The workshop asks back over a socket for stored data and hands over consoles.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, NoReturn

import msgspec

from ckpt import abi
from ckpt.arch import x86_64 as arch
from ckpt.model import Pod
from ckpt.workshop import FileWorkshop
from launcher import enter, pods, program, userns

_NAMESPACES: Final = ("cgroup", "ipc", "uts", "net", "time", "pid", "mnt")
"""In the order of entering; the mount namespace last, for it changes root and directory."""

_USERS: Final = "user"
"""Entered by each process when it needs the host's privileges no more."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
_HEADER: Final = struct.Struct("<I")


class RestoreError(Exception):
    """The pod cannot be restarted; *hint* says what may help, or is ""."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class _Message(msgspec.Struct, tag=True, frozen=True):
    pass


class _Load(_Message, frozen=True):
    first: int
    length: int


class _Console(_Message, frozen=True):
    index: int


class _Failed(_Message, frozen=True):
    text: str


class _Ready(_Message, frozen=True):
    seed: int
    files: dict[int, int]
    users_fd: int | None


_Request = _Load | _Console | _Failed | _Ready


class Seed(msgspec.Struct, frozen=True):
    """A process in the pod that holds every open file and waits to be traced.

    Attributes:
        host_pid: its id in the host's pid namespace.
        files: OpenFile.id to its descriptor, which all processes cloned from it inherit.
        floor_fd: those descriptors are not below it; the pod's own are.
        users_fd: such a one of the pod's user namespace, if it has one.
        host_proc_fd: its descriptor of the host's /proc, wherever.
    """

    host_pid: int
    files: dict[int, int]
    floor_fd: int
    users_fd: int | None
    host_proc_fd: int
    _channel: socket.socket
    _workshop_pid: int

    def duplicate(self, file: int) -> int:
        """Return a descriptor of its open file with OpenFile.id *file*; the caller owns it."""
        pidfd = os.pidfd_open(self.host_pid)
        try:
            return abi.pidfd_getfd(pidfd, self.files[file])
        finally:
            os.close(pidfd)

    def end(self) -> None:
        """Wait for the workshop, which ends the seed; idempotent."""
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._workshop_pid, 0)


def plant(
    running: pods.Pod,
    model: Pod,
    seed_pid: int,
    *,
    load: Callable[[int, int], bytes],
    give_console: Callable[[int, int], None],
) -> Seed:
    """Rebuild the open files of *model* and return the seed that holds them.

    Args:
        running: the pod, fresh.
        model: what it is to hold.
        seed_pid: the number that the seed is to have in the pod.
        load: returns stored data, by first page and length in bytes.
        give_console: takes index and master of a pty whose master was outside of the pod.

    Raises:
        RestoreError: a file cannot be rebuilt.
    """
    floor = 1 + max((d.fd for p in model.processes for d in p.descriptors), default=2)
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.callback(theirs.close)
        spaces = enter.namespaces(running)
        if userns.base(running.init_pid) is not None:
            path = f"/proc/{running.init_pid}/ns/user"
            spaces[_USERS] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        for fd in spaces.values():
            stack.callback(os.close, fd)
        host_proc_fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, host_proc_fd)
        log_fd = program.open_log(running)
        stack.callback(os.close, log_fd)
        lent_fd = os.open(running.places.restarting(running.name), _APPEND)
        stack.callback(os.close, lent_fd)
        workshop_pid = os.fork()
        if workshop_pid == 0:
            ours.close()
            shop = _Shop(theirs, spaces, model, host_proc_fd, log_fd, lent_fd, max(floor, 64))
            shop.run(seed_pid)
    try:
        ready = _serve(ours, load, give_console)
    except BaseException:
        ours.close()
        os.waitpid(workshop_pid, 0)
        raise
    return Seed(
        ready.seed,
        ready.files,
        max(floor, 64),
        ready.users_fd,
        host_proc_fd,
        ours,
        workshop_pid,
    )


def _serve(
    channel: socket.socket,
    load: Callable[[int, int], bytes],
    give_console: Callable[[int, int], None],
) -> _Ready:
    """Answer the workshop until it is ready."""
    while True:
        request, fds = _receive(channel)
        match request:
            case _Load(first, length):
                channel.sendall(load(first, length))
            case _Console(index):
                give_console(index, fds[0])
                os.close(fds[0])
                channel.sendall(b"\0")
            case _Failed(text):
                raise RestoreError(text)
            case _Ready():
                return request


def _receive(channel: socket.socket) -> tuple[_Request, list[int]]:
    head, fds, _, _ = socket.recv_fds(channel, _HEADER.size, 1)
    if not head:
        raise RestoreError("the process that rebuilds the open files ended unexpectedly")
    (length,) = _HEADER.unpack(head)
    request: _Request = msgspec.msgpack.decode(_exactly(channel, length), type=_Request)
    return request, fds


def _exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = channel.recv(length - len(data))
        if not piece:
            raise EOFError("the other side has gone")
        data += piece
    return bytes(data)


def _send(channel: socket.socket, message: _Message, fds: tuple[int, ...] = ()) -> None:
    data = msgspec.msgpack.encode(message)
    socket.send_fds(channel, [_HEADER.pack(len(data))], fds)
    channel.sendall(data)


class _Shop:
    """The workshop process."""

    def __init__(  # noqa: PLR0913, PLR0917 (what it is to have)
        self,
        channel: socket.socket,
        spaces: dict[str, int],
        model: Pod,
        host_proc_fd: int,
        log_fd: int,
        lent_fd: int,
        floor_fd: int,
    ) -> None:
        self._channel = channel
        self._spaces = spaces
        self._model = model
        self._floor_fd = floor_fd
        self._files = FileWorkshop(
            model.files,
            model.objects,
            load=self._load,
            host_proc_fd=host_proc_fd,
            log_fd=log_fd,
            lent_fd=lent_fd,
            floor_fd=floor_fd,
            give_console=self._give_console,
        )

    def run(self, seed_pid: int) -> NoReturn:
        """Work, report, wait for the end of the seed; never return to the caller's stack."""
        status = 1
        try:
            self._enter()
            self._files.rebuild_pod(self._model.parts)
            files = self._files.rebuild()
            users_fd = None
            if _USERS in self._spaces:
                above = self._spaces[_USERS], fcntl.F_DUPFD_CLOEXEC, self._floor_fd
                users_fd = fcntl.fcntl(*above)
            seed = self._clone_seed(seed_pid)
            _send(self._channel, _Ready(seed, files, users_fd))
            self._channel.recv(1)  # ends when the seed has done its part, or the command died
            os.kill(seed, signal.SIGKILL)
            os.waitpid(seed, 0)
            status = 0
        except BaseException as e:  # noqa: BLE001 (it must not leave this process)
            self._report(e)
        finally:
            os._exit(status)

    def _enter(self) -> None:
        """Become part of the pod, with nothing left of the caller's session."""
        abi.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.umask(0)
        abi.prctl(_PR_SET_DUMPABLE, 0)
        for number in signal.valid_signals():
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        for name in _NAMESPACES:
            abi.setns(self._spaces[name])

    def _clone_seed(self, pid: int) -> int:
        """Clone a process into the pod's pid namespace, under number *pid* there."""
        number = ctypes.c_int(pid)
        args = abi.clone_args(
            exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(number), set_tid_size=1
        )
        size = ctypes.sizeof(args)
        seed = abi.syscall("clone3", arch.SYSCALLS["clone3"], ctypes.byref(args), size)
        if seed == 0:
            abi.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            while True:
                signal.pause()
        return seed

    def _load(self, first: int, length: int) -> bytes:
        _send(self._channel, _Load(first, length))
        return _exactly(self._channel, length)

    def _give_console(self, index: int, master_fd: int) -> None:
        _send(self._channel, _Console(index), (master_fd,))
        _exactly(self._channel, 1)

    def _report(self, error: BaseException) -> None:
        notes: list[Any] = getattr(error, "__notes__", [])
        text = ", ".join([str(error) or type(error).__name__, *map(str, notes)])
        _send(self._channel, _Failed(text))
