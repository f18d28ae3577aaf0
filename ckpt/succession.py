"""The processes that bring a pod's memory: the page server, and the guard that takes its place.

They are nobody's children, and end when all has arrived or the pod has. They share their open files
(CLONE_FILES), so that no descriptor is lost with one of them: were the last one closed, the kernel
would give the program zeros. When the server is killed the guard becomes the server, where the
ledger (ckpt/ledger.py) says; when the guard is killed the server makes another one. Who gives up,
because the archive has become unreadable, kills the pod first.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from ckpt import abi
from ckpt.absent import Ambiguous
from ckpt.arch import x86_64 as arch
from ckpt.archive.errors import ArchiveError
from ckpt.ledger import Ledger
from ckpt.pageserver import PageServer
from launcher import abi as launcher_abi
from launcher import pods

if TYPE_CHECKING:
    from ckpt.archive.read import Archive

DOOR: Final = "pages.sock"
"""In the pod's directory below /run: who connects waits until all is there."""

_CLONE_FILES: Final = 0x400
_PR_SET_NAME: Final = 15
_DEATH_MS: Final = 10_000


class _Guard(msgspec.Struct, frozen=True):
    """A guard that was forked: its pid, and a pidfd, owned."""

    pid: int
    fd: int


class Attendant:
    """A process that is the server, or its guard; forked from the restart."""

    def __init__(
        self,
        running: pods.Pod,
        archive: "Archive",
        wish: tuple[int | None, Path | None],
        lent: tuple[socket.socket, socket.socket, int],
    ) -> None:
        """Take descriptors of the process that calls, which is about to have no other use for them.

        Args:
            running: the pod.
            archive: what it is restarted from.
            wish: as PageServer's rate; a name of the archive's to be removed at the end.
            lent: the channel of PageServer, its door, and a pidfd of the pod's.
        """
        self._running, self._archive = running, archive
        self._rate, self._kept = wish
        self._source = os.path.abspath(self._kept or archive.path)
        self._channel: socket.socket | None = lent[0]
        self._door, self._pod_fd = lent[1:]
        door = running.places.run(running.name) / DOOR
        self._names = {path: path.stat().st_ino for path in (door, self._kept) if path}

    def run(self) -> NoReturn:
        """Be the first server, with nothing of the command but what is needed."""
        try:
            if os.fork():
                os._exit(0)
            self._leave_command()
            self._ledger = Ledger()
            while True:  # not one within another, since they may be killed without end
                server_fd = self._serve()
                self._guard(server_fd)
        except BaseException:  # noqa: BLE001 (it must not leave this process)
            traceback.print_exc()
            self._kill_pod()
        finally:
            os._exit(1)

    def _leave_command(self) -> None:
        os.setsid()
        os.chdir("/")
        log = self._running.places.run(self._running.name) / "pages.log"
        with open(os.devnull, "rb") as nothing, open(log, "ab") as file:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)
        channel = [self._channel.fileno()] if self._channel else []
        _close_all_but(sorted((*self._lent(), *channel)))
        name = ctypes.create_string_buffer(b"pages")
        abi.prctl(_PR_SET_NAME, ctypes.addressof(name))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each child
        with contextlib.suppress(OSError):  # in a container
            Path("/proc/self/oom_score_adj").write_text("-1000")

    def _lent(self) -> tuple[int, ...]:
        return (self._door.fileno(), self._pod_fd, *self._archive.descriptors())

    def _serve(self) -> int:
        """Be the server until the end; return in its guards, with a pidfd of the server."""
        try:
            own_fd = os.pidfd_open(os.getpid())
            server = PageServer(
                self._channel,
                self._door,
                read=self._archive.pages.read,
                running=self._running,
                rate=self._rate,
                ledger=self._ledger,
            )
            guard = self._make_guard()
            if guard is None:
                return own_fd
            if self._channel is None:
                server.recall()
            while not server.run((self._pod_fd, guard.fd)) and not _is_over(self._pod_fd):
                os.close(guard.fd)
                os.waitpid(guard.pid, 0)
                guard = self._make_guard()
                if guard is None:
                    return own_fd
            self._end()
        except (ArchiveError, Ambiguous, OSError) as e:
            sys.stderr.write(f"autopod: error: {e}\n")
        except BaseException:  # noqa: BLE001 (the log says it)
            traceback.print_exc()
        self._ledger.end(failed=True)
        self._kill_pod()  # there may be no guard to do it
        sys.stderr.flush()
        os._exit(1)

    def _end(self) -> NoReturn:
        """Leave: all is there, or the pod has ended."""
        for path, inode in self._names.items():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:  # not the next restart's
                    path.unlink()
        self._ledger.end(failed=False)
        os._exit(0)

    def _make_guard(self) -> _Guard | None:
        """Fork a guard of this process; return None in the guard."""
        args = abi.clone_args(flags=_CLONE_FILES, exit_signal=signal.SIGCHLD)
        size, number = ctypes.sizeof(args), arch.SYSCALLS["clone3"]
        pid = abi.syscall("clone3", number, ctypes.byref(args), size)
        return _Guard(pid, os.pidfd_open(pid)) if pid else None

    def _guard(self, server_fd: int) -> None:
        """Be the guard; return when the server was killed and its place is to be taken."""
        _wait(server_fd)
        if self._ledger.is_serving and not _is_over(self._pod_fd):
            self._channel = None
            _close_all_but(sorted((*self._lent(), *self._ledger.descriptors())))
            return
        if not self._ledger.is_over:
            self._kill_pod()
        os._exit(0)

    def _kill_pod(self) -> None:
        """Kill the pod before anything of its memory is given up."""
        if _is_over(self._pod_fd):
            return
        try:
            pods.kill(self._running)
        except OSError:  # out of descriptors, say
            signal.pidfd_send_signal(self._pod_fd, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._tell()
        _wait(self._pod_fd, _DEATH_MS)

    def _tell(self) -> None:
        """Write why the pod was killed."""
        name = self._running.name
        text = (
            f"autopod: not all memory of pod {name} can be brought, so the pod was killed: "
            f"restart it from {self._source}\n"
        )
        sys.stderr.write(text)
        sys.stderr.flush()
        with open(self._running.places.log(name), "a") as log:
            log.write(text)


def _is_over(pidfd: int) -> bool:
    return _wait(pidfd, 0)


def _wait(pidfd: int, most_ms: int | None = None) -> bool:
    """Wait until a process has ended; return whether it has. There may be thousands of files."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(most_ms))


def _close_all_but(kept: Sequence[int]) -> None:
    """Close all descriptors from 3 on but those, which are ascending."""
    for first, last in zip((3, *(fd + 1 for fd in kept)), (*kept, 1 << 32), strict=True):
        if first < last:
            launcher_abi.close_range(first, last - 1, 0)
