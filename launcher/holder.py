"""The holder: the process of a pod that keeps the masters of its terminals open.

A terminal hangs up when its last master is closed. So that neither the end of a client nor a
restart of the pod does that, masters belong to this process. It is no relay: a client that
attaches gets the master itself, and the holder only looks after those nobody is attached to,
reading what programs write so that they do not block, and keeping the last of it for the next
client.

Protocol on `/run/autopod/POD/holder.sock` (SOCK_SEQPACKET), one JSON object per packet: a
client gives a master or asks for one, with the descriptor as SCM_RIGHTS (unix(7)); it is attached
as long as its connection stands. Whoever attaches last has the terminal.

One per pod, started with the first terminal; ends with the pod. One thread.
"""

import array
import contextlib
import os
import select
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Final

import msgspec

from launcher import enter, pods
from launcher.errors import PodError
from launcher.places import Places

_SCROLLBACK: Final = 64 * 1024
_PACKET: Final = 2 * _SCROLLBACK


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client wants: to *give* a terminal's master, or to *attach* to one (None: any)."""

    op: str
    index: int | None = None


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer; with *index* the master and then a packet with recent output follow."""

    error: str | None = None
    index: int | None = None


# --- clients -------------------------------------------------------------------------------


def give_console(places: Places, pod_name: str, index: int, master_fd: int) -> None:
    """Hand the master of the pod's terminal `/dev/pts/INDEX` to its holder.

    The holder is started if there is none. It duplicates *master_fd*; the caller still owns it.

    Raises:
        PodError: the pod is not running, or the holder cannot be started.
    """
    with _connect(places, pod_name) or _start(places, pod_name) as connection:
        _ask(connection, Request("give", index), [master_fd])


@dataclass(frozen=True, slots=True)
class Attachment:
    """A client's hold of a terminal.

    Attributes:
        connection: ends when somebody else attaches.
        index: the terminal is `/dev/pts/INDEX`.
        master_fd: its master.
        recent: what it showed last.
    """

    connection: socket.socket
    index: int
    master_fd: int
    recent: bytes

    def close(self) -> None:
        """Leave the terminal to the holder."""
        os.close(self.master_fd)
        self.connection.close()


def attach(places: Places, pod_name: str, index: int | None) -> Attachment:
    """Attach to terminal *index*, or to the only one.

    Raises:
        PodError: there is no such terminal.
    """
    connection = _connect(places, pod_name)
    if connection is None:
        raise PodError(f"pod {pod_name!r} has no terminal", f"launcher run -t {pod_name} PROGRAM")
    try:
        reply, fds = _ask(connection, Request("attach", index), [])
        recent = connection.recv(_PACKET)
        return Attachment(connection, reply.index or 0, fds[0], recent.removeprefix(b"\0"))
    except BaseException:
        connection.close()
        raise


def _ask(connection: socket.socket, request: Request, fds: list[int]) -> tuple[Reply, list[int]]:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([msgspec.json.encode(request)], ancillary)
    packet, received = _receive(connection)
    if not packet:
        raise PodError("the pod's holder has ended")
    reply = msgspec.json.decode(packet, type=Reply)
    if reply.error is not None:
        raise PodError(reply.error)
    return reply, received


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return a packet and the descriptors that came with it, close-on-exec."""
    packet, fds, _, _ = socket.recv_fds(connection, _PACKET, 1, socket.MSG_CMSG_CLOEXEC)
    return packet, fds


def _address(places: Places, name: str, directory_fd: int) -> str:
    """Return the socket's path by way of a descriptor: sun_path holds 107 bytes only."""
    return f"/proc/self/fd/{directory_fd}/holder.sock"


def _connect(places: Places, name: str) -> socket.socket | None:
    """Return a connection to the holder of pod *name*; None if there is none."""
    directory_fd = os.open(places.run(name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(_address(places, name, directory_fd))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    finally:
        os.close(directory_fd)
    return connection


def _start(places: Places, name: str) -> socket.socket:
    """Start the holder; return a connection once it listens."""
    environment = {**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)}
    ready, writer = os.pipe2(os.O_CLOEXEC)
    with open(places.run(name) / "holder.log", "ab") as log, os.fdopen(ready, "rb") as reader:
        subprocess.run(
            [sys.executable, "-P", "-m", "launcher.holder", name, str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            env=environment,
            cwd="/",
            check=False,
        )
        os.close(writer)
        listening = reader.read()
    connection = _connect(places, name) if listening else None
    if connection is None:
        raise PodError("the pod's holder cannot be started", f"see {log.name}")
    return connection


# --- the holder ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Console:
    master_fd: int
    client: socket.socket | None = None
    recent: bytearray = field(default_factory=bytearray)


class _Holder:
    """State and loop of the holder."""

    def __init__(self, listener: socket.socket, pod_fd: int) -> None:
        self._listener, self._pod_fd = listener, pod_fd
        self._consoles: dict[int, _Console] = {}
        self._visitors: list[socket.socket] = []

    def run(self) -> None:
        """Serve until the pod has ended."""
        while True:
            ready = {fd for fd, _ in self._poll().poll()}
            if self._pod_fd in ready:
                return
            for index, console in list(self._consoles.items()):
                self._tend(index, console, ready)
            for visitor in [v for v in self._visitors if v.fileno() in ready]:
                self._visitors.remove(visitor)
                self._serve(visitor)
            if self._listener.fileno() in ready:
                self._visitors.append(self._listener.accept()[0])

    def _poll(self) -> select.poll:
        poll = select.poll()
        sources = [self._listener.fileno(), self._pod_fd, *(v.fileno() for v in self._visitors)]
        sources += [c.client.fileno() if c.client else c.master_fd for c in self._consoles.values()]
        for fd in sources:
            poll.register(fd, select.POLLIN)
        return poll

    def _tend(self, index: int, console: _Console, ready: set[int]) -> None:
        """See to a console: its client has left, or its programs have written or closed it."""
        if console.client is not None:
            if console.client.fileno() in ready:  # a client says nothing: it has hung up
                console.client.close()
                console.client = None
        elif console.master_fd in ready:
            try:
                console.recent += os.read(console.master_fd, _SCROLLBACK)
                del console.recent[:-_SCROLLBACK]
            except OSError:  # EIO: nobody has the terminal open any more
                os.close(console.master_fd)
                del self._consoles[index]

    def _serve(self, visitor: socket.socket) -> None:
        fds: list[int] = []
        with contextlib.suppress(OSError, msgspec.DecodeError):
            packet, fds = _receive(visitor)
            request = msgspec.json.decode(packet, type=Request)
            if request.op == "give" and request.index is not None and fds:
                self._take(request.index, fds.pop())
                visitor.send(msgspec.json.encode(Reply()))
            elif request.op == "attach" and self._attach(visitor, request.index):
                return
        for fd in fds:
            os.close(fd)
        visitor.close()

    def _take(self, index: int, master_fd: int) -> None:
        old = self._consoles.pop(index, None)
        if old is not None:
            os.close(old.master_fd)
            if old.client is not None:
                old.client.close()
        self._consoles[index] = _Console(master_fd)

    def _attach(self, visitor: socket.socket, index: int | None) -> bool:
        """Give *visitor* a console; False if there is none for it."""
        chosen = (
            list(self._consoles) if index is None else [i for i in self._consoles if i == index]
        )
        if len(chosen) != 1:
            visitor.send(msgspec.json.encode(Reply(error=self._no_choice(index))))
            return False
        console = self._consoles[chosen[0]]
        reply = msgspec.json.encode(Reply(index=chosen[0]))
        socket.send_fds(visitor, [reply], [console.master_fd])
        visitor.send(b"\0" + console.recent)  # an empty packet would look like the end
        if console.client is not None:
            console.client.close()
        console.client = visitor
        return True

    def _no_choice(self, index: int | None) -> str:
        names = ", ".join(map(str, sorted(self._consoles))) or "none"
        if index is not None:
            return f"there is no terminal {index} to attach to (there are: {names})"
        return f"which terminal? There are: {names}"


def _main(name: str, ready: str) -> int:
    """Become the holder of pod *name*; the byte on descriptor *ready* says that it listens."""
    places = Places.from_environment()
    pod = pods.find(places, name)
    if pod is None:
        sys.stderr.write(f"pod {name!r} is not running\n")
        return 1
    pod_fd = enter.pidfd(pod)
    path = places.run(name) / "holder.sock"
    path.unlink(missing_ok=True)
    directory_fd = os.open(places.run(name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(_address(places, name, directory_fd))
    os.close(directory_fd)
    listener.listen()
    if os.fork():
        os._exit(0)  # the starter waits for this process; the holder is nobody's child
    os.setsid()
    os.write(int(ready), b"1")
    os.close(int(ready))
    _Holder(listener, pod_fd).run()
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
