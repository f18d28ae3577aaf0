"""Lazy restart: memory that follows while the pod runs already.

Two processes stay behind when the restart command ends, and end when all has arrived or the pod
has: the page server (ckpt/pageserver.py), and its guard. They share their open files (CLONE_FILES),
so that no descriptor is lost with one of them: were the last one closed, the kernel would give the
program zeros. If one of them dies the other kills the pod, which then waits for pages that nobody
brings; the archive from which it came is still there.
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
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from ckpt import abi, userfault
from ckpt.arch import x86_64 as arch
from ckpt.kinds.memory import Mapping
from ckpt.pageserver import Given, PageServer
from ckpt.remote import Remote
from launcher import abi as launcher_abi
from launcher import cgroups, enter, pods
from launcher.places import Places

if TYPE_CHECKING:
    from ckpt.archive.read import Archive

_DOOR: Final = "pages.sock"
_CLONE_FILES: Final = 0x400
_PR_SET_NAME: Final = 15
_DEATH_MS: Final = 10_000


class Lazy:
    """The page server of a pod that is being made. As a context: left when it has been let go."""

    def __init__(self, running: pods.Pod, archive: "Archive", rate: int | None) -> None:
        """Start it.

        Args:
            running: the pod.
            archive: it keeps reading that one, whatever becomes of the file's name.
            rate: as PageServer's.
        """
        self._channel, theirs = socket.socketpair()
        door = _make_door(running.places, running.name)
        pod_fd = enter.pidfd(running)
        try:
            child = os.fork()
            if child == 0:
                self._channel.close()
                _Guard(running, archive, rate, (theirs, door, pod_fd)).run()
            os.waitpid(child, 0)
        finally:
            theirs.close()
            door.close()
            os.close(pod_fd)

    def __enter__(self) -> "Lazy":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def serve(self, remote: Remote, mappings: Iterable[Mapping]) -> None:
        """Have the pages of *mappings*, which were just made in a process, brought there.

        Raises:
            OSError: the kernel cannot do it, or the page server has ended.
        """
        fd, runs = userfault.watch(remote), []
        try:
            for mapping in mappings:
                userfault.register(fd, mapping.start, mapping.end - mapping.start)
                runs += mapping.runs
            body = msgspec.msgpack.encode(Given(remote.tracee.tid, runs))
            socket.send_fds(self._channel, [len(body).to_bytes(8)], [fd])
            self._channel.sendall(body)
        finally:
            os.close(fd)


def wait(places: Places, pod: str) -> None:
    """Wait until all memory of a pod that was restarted lazily has arrived, as fast as it can."""
    with (
        _address(places, pod) as address,
        socket.socket(socket.AF_UNIX) as connection,
        contextlib.suppress(FileNotFoundError, ConnectionError),
    ):
        connection.connect(address)
        connection.recv(1)


@contextlib.contextmanager
def _address(places: Places, pod: str) -> Iterator[str]:
    """Give the address of the door by way of a descriptor: sun_path holds 107 bytes only."""
    directory_fd = os.open(places.run(pod), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory_fd}/{_DOOR}"
    finally:
        os.close(directory_fd)


def _make_door(places: Places, pod: str) -> socket.socket:
    (places.run(pod) / _DOOR).unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX)
    try:
        with _address(places, pod) as address:
            door.bind(address)
        door.listen()
    except BaseException:
        door.close()
        raise
    return door


class _Guard:
    """Forked from the restart: becomes the guard, and forks the page server."""

    def __init__(
        self,
        running: pods.Pod,
        archive: "Archive",
        rate: int | None,
        lent: tuple[socket.socket, socket.socket, int],
    ) -> None:
        self._running, self._archive, self._rate = running, archive, rate
        self._channel, self._door, self._pod_fd = lent

    def run(self) -> NoReturn:
        """Be nobody's child, with nothing of the command but what is needed."""
        try:
            if os.fork():
                os._exit(0)
            self._leave_command()
            guard_fd = os.pidfd_open(os.getpid())
            args = abi.clone_args(flags=_CLONE_FILES, exit_signal=signal.SIGCHLD)
            size, number = ctypes.sizeof(args), arch.SYSCALLS["clone3"]
            server = abi.syscall("clone3", number, ctypes.byref(args), size)
            if server == 0:
                self._serve(guard_fd)
            _, status = os.waitpid(server, 0)
            if status:
                self._kill_pod("the page server", status)
            (self._running.places.run(self._running.name) / _DOOR).unlink(missing_ok=True)
        except BaseException:  # noqa: BLE001 (it must not leave this process)
            traceback.print_exc()
        finally:
            os._exit(0)

    def _leave_command(self) -> None:
        os.setsid()
        os.chdir("/")
        log = self._running.places.run(self._running.name) / "pages.log"
        with open(os.devnull, "rb") as nothing, open(log, "ab") as file:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)
        lent = (self._channel.fileno(), self._door.fileno(), self._pod_fd)
        _close_all_but(sorted((*lent, *self._archive.descriptors())))
        name = ctypes.create_string_buffer(b"pages")
        abi.prctl(_PR_SET_NAME, ctypes.addressof(name))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each child

    def _serve(self, guard_fd: int) -> NoReturn:
        """Be the page server."""
        status = 1
        try:
            running = self._running
            server = PageServer(
                self._channel,
                self._door,
                read=self._archive.pages.read,
                pids=lambda: enter.pids(running),
                freezer=cgroups.freezer(running.cgroups),
                rate=self._rate,
            )
            server.run((self._pod_fd, guard_fd))
            if _is_over(guard_fd) and not _is_over(self._pod_fd):
                self._kill_pod("the guard of the page server", signal.SIGKILL)
            status = 0
        except BaseException:  # noqa: BLE001 (the guard is told, the log says it)
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _kill_pod(self, who: str, status: int) -> None:
        """Kill the pod before anything of its memory is given up."""
        if _is_over(self._pod_fd):
            return
        pods.kill(self._running)
        name = self._running.name
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an error"
        text = (
            f"autopod: {who} ended by {how} before all memory of pod {name} had arrived, so the "
            f"pod was killed: restart it from {self._archive.path}\n"
        )
        sys.stderr.write(text)
        with open(self._running.places.log(name), "a") as log:
            log.write(text)
        poll = select.poll()
        poll.register(self._pod_fd, select.POLLIN)
        poll.poll(_DEATH_MS)


def _is_over(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


def _close_all_but(kept: Sequence[int]) -> None:
    """Close all descriptors from 3 on but those, which are ascending."""
    for first, last in zip((3, *(fd + 1 for fd in kept)), (*kept, 1 << 32), strict=True):
        if first < last:
            launcher_abi.close_range(first, last - 1, 0)
