"""The clients of a pod's holder (launcher.holding): what they say, and how it is started.

Protocol on `/run/autopod/POD/holder.sock` (SOCK_SEQPACKET), one JSON object per packet, a
descriptor as SCM_RIGHTS (unix(7)): a client gives the master of a terminal, or asks for one and is
attached to it as long as its connection stands; or it gives the listener of a filter.
"""

import array
import contextlib
import os
import socket
import sys
from typing import Final

import msgspec

from launcher.errors import PodError
from launcher.places import Places

SCROLLBACK: Final = 64 * 1024
_PACKET: Final = 2 * SCROLLBACK


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client wants.

    To "give" the master of terminal *index*, to "attach" to one (None: any), to give a
    "listener"; to have the service kept that is to be "start"ed or is there already ("keep"), as
    long as the connection tells, or not any more ("leave"). "hello" asks only whether it serves;
    another request may follow.
    """

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
    with connect(places, pod_name) as connection:
        _ask(connection, Request("give", index), [master_fd])


def connect(places: Places, pod_name: str) -> socket.socket:
    """Return a connection to the pod's holder, which is started if there is none.

    The caller owns it. give_listener() needs no more than this.

    Raises:
        PodError: the pod is not running, or the holder cannot be started.
    """
    connection = _connect(places, pod_name)
    if connection is not None and not _serves(connection):  # one that is dying still has its door
        connection.close()
        connection = _connect(places, pod_name)
    return connection or _start(places, pod_name)


def give_listener(connection: socket.socket, listener_fd: int) -> None:
    """Hand the listener of a filter over, for the pod's monitor to answer on; it is duplicated.

    When this returns, the filter's calls are answered whatever becomes of the caller.

    Raises:
        PodError: the holder has ended.
    """
    _ask(connection, Request("listener"), [listener_fd])


def keep(places: Places, pod_name: str, *, start: bool) -> socket.socket:
    """Have the pod's service kept (launcher.keeper), and started if *start*.

    Returns:
        A connection on which a Reply comes when the service is over. The caller owns it.

    Raises:
        PodError: it cannot be started.
    """
    connection = connect(places, pod_name)
    try:
        _ask(connection, Request("start" if start else "keep"), [])
    except BaseException:
        connection.close()
        raise
    return connection


def leave(places: Places, pod_name: str) -> None:
    """Have the pod's service not kept any more, because it is to end."""
    connection = _connect(places, pod_name)
    if connection is not None:
        with connection, contextlib.suppress(PodError, ConnectionError):
            _ask(connection, Request("leave"), [])


def wait_for_end(places: Places, pod_name: str, timeout_s: float) -> None:
    """Wait until the holder of a pod that has ended is gone, and with it the pod's monitor.

    Until then the pod's mounts are in use.

    Raises:
        PodError: it does not end in time.
    """
    connection = _connect(places, pod_name)
    if connection is None:
        return
    with connection, contextlib.suppress(ConnectionResetError):
        connection.settimeout(timeout_s)
        try:
            connection.recv(1)
        except TimeoutError as e:
            raise PodError(f"the holder of pod {pod_name!r} does not end") from e


class Attachment(msgspec.Struct, frozen=True):
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


def _serves(connection: socket.socket) -> bool:
    with contextlib.suppress(PodError, ConnectionError):
        _ask(connection, Request("hello"), [])
        return True
    return False


def _ask(connection: socket.socket, request: Request, fds: list[int]) -> tuple[Reply, list[int]]:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([msgspec.json.encode(request)], ancillary)
    packet, received = receive(connection)
    if not packet:
        raise PodError("the pod's holder has ended")
    reply = msgspec.json.decode(packet, type=Reply)
    if reply.error is not None:
        raise PodError(reply.error)
    return reply, received


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return a packet and the descriptors that came with it, close-on-exec."""
    packet, fds, _, _ = socket.recv_fds(connection, _PACKET, 1, socket.MSG_CMSG_CLOEXEC)
    return packet, fds


def address(directory_fd: int) -> str:
    """Return the socket's path by way of a descriptor: sun_path holds 107 bytes only."""
    return f"/proc/self/fd/{directory_fd}/holder.sock"


def _connect(places: Places, name: str) -> socket.socket | None:
    """Return a connection to the holder of pod *name*; None if there is none."""
    directory_fd = os.open(places.run(name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(address(directory_fd))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    finally:
        os.close(directory_fd)
    return connection


def _start(places: Places, name: str) -> socket.socket:
    """Start the holder; return a connection once it listens."""
    import subprocess

    environment = {**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)}
    ready, writer = os.pipe2(os.O_CLOEXEC)
    with open(places.run(name) / "holder.log", "ab") as log, os.fdopen(ready, "rb") as reader:
        subprocess.run(
            [sys.executable, "-P", "-m", "launcher.holding", name, str(writer)],
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
