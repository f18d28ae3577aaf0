"""Lazy restart: memory that follows while the pod runs already.

The restart hands descriptors of memory to the page server (ckpt/pageserver.py), which goes on when
the command has ended (ckpt/succession.py).
"""

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ckpt import userfault
from ckpt.archive import newfile
from ckpt.kinds.memory import Mapping
from ckpt.pageserver import READY, Given
from ckpt.remote import Remote
from ckpt.succession import DOOR, Attendant
from launcher import enter, pods
from launcher.places import Places

if TYPE_CHECKING:
    from ckpt.archive.read import Archive


class Lazy:
    """The page server of a pod that is being made. As a context: left when it has been let go."""

    def __init__(
        self, running: pods.Pod, archive: "Archive", rate: int | None, kept: Path | None = None
    ) -> None:
        """Start it.

        Args:
            running: the pod.
            archive: it keeps reading that one, whatever becomes of the file's name.
            rate: as PageServer's.
            kept: the name that the archive will have; it is removed when all has arrived.
        """
        if kept:
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            kept.unlink(missing_ok=True)
            newfile.name(archive.descriptors()[0], kept)
        self._channel, theirs = socket.socketpair()
        door = _make_door(running.places, running.name)
        pod_fd = enter.pidfd(running)
        try:
            child = os.fork()
            if child == 0:
                self._channel.close()
                Attendant(running, archive, (rate, kept), (theirs, door, pod_fd)).run()
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

    def settle(self) -> None:
        """Return when all of that is known, so that the page server may be killed from now on.

        Raises:
            OSError: it has ended.
        """
        self._channel.shutdown(socket.SHUT_WR)
        if self._channel.recv(1) != READY:
            raise ConnectionError("the page server has ended")


def wait(places: Places, pod: str) -> None:
    """Wait until all memory of a pod that was restarted lazily has arrived, as fast as it can."""
    with contextlib.suppress(FileNotFoundError, ConnectionError):
        while True:
            with (
                _address(places, pod) as address,
                socket.socket(socket.AF_UNIX) as connection,
            ):
                connection.connect(address)
                connection.recv(1)  # it has ended; another one may have taken its place


@contextlib.contextmanager
def _address(places: Places, pod: str) -> Iterator[str]:
    """Give the address of the door by way of a descriptor: sun_path holds 107 bytes only."""
    directory_fd = os.open(places.run(pod), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory_fd}/{DOOR}"
    finally:
        os.close(directory_fd)


def _make_door(places: Places, pod: str) -> socket.socket:
    (places.run(pod) / DOOR).unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX)
    try:
        with _address(places, pod) as address:
            door.bind(address)
        door.listen()
    except BaseException:
        door.close()
        raise
    return door
