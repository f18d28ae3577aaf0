"""Speaking with stackfs: what it is asked for, and its control socket (ARCHITECTURE.md).

Nothing of stackfs is imported: starting trio and pyfuse3 is the daemon's business. An error carries
stackfs's own words.
"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, TypeVar, cast

import msgspec

from ckpt.stackcommand import Command, Identity, Mounting, Packing, StackError, Unpacking
from launcher import lock, users
from launcher.places import Places

_REPLY_SECONDS: Final = 60
_MAX_REPLY: Final = 1 << 20

T = TypeVar("T")


class NotMounted(StackError):  # noqa: N818 (a state, which callers ask for)
    """The pod has no stackfs daemon."""


class Lower(msgspec.Struct, frozen=True):
    """A read-only lower layer; *identity* is None while stackfs has not computed it."""

    path: str
    identity: str | None


class SealedLayer(msgspec.Struct, frozen=True):
    """A former upper, read-only now, with the id that it got when it was sealed."""

    id: str
    path: str


class Status(msgspec.Struct, frozen=True):
    """What a daemon says of its mount; layers and lowers topmost first."""

    pod: str
    pid: int
    root: str
    lower: list[Lower]
    layers: list[SealedLayer]
    upper: str
    upper_empty: bool


class Snapshot(msgspec.Struct, frozen=True):
    """The upper has become *layer*, the first of *layers*."""

    layer: SealedLayer
    layers: list[SealedLayer]


def status(places: Places, pod: str) -> Status:
    """Ask the daemon of *pod* for its state.

    Raises:
        NotMounted: there is no daemon.
    """
    return _request(places, pod, "status", Status)


def identify(places: Places, pod: str) -> "Identified":
    """Begin to ask the daemon of *pod* for the identities of its lower layers.

    It works them out once; they never change while it runs.

    Raises:
        NotMounted: there is no daemon.
    """
    return Identified(places, pod)


def snapshot(places: Places, pod: str) -> Snapshot:
    """Seal the upper of *pod* as its newest layer.

    The caller has stopped the pod's processes and called syncfs(2) on its root.

    Raises:
        NotMounted: there is no daemon.
    """
    return _request(places, pod, "snapshot", Snapshot)


def is_mounted(places: Places, pod: str) -> bool:
    """Does a daemon of *pod* answer?"""
    try:
        status(places, pod)
    except NotMounted:
        return False
    return True


def mount(
    places: Places,
    pod: str,
    lowers: Sequence[str | Path],
    *,
    upper: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> None:
    """Mount the root of *pod* from *lowers*, topmost first; returns when it answers.

    Args:
        places: the instance.
        pod: its name.
        lowers: directories; `/proc/self/fd/N` with N among *pass_fds* names an open one.
        upper: the writable layer, if not the pod's own state directory.
        pass_fds: descriptors that stackfs inherits.
    """
    begin_mount(places, pod, pass_fds=pass_fds).finish(lowers, upper)


def begin_mount(places: Places, pod: str, *, pass_fds: Sequence[int] = ()) -> Mounting:
    """Start to mount the root of *pod*: all but the decision what to mount.

    Its files are for the kernel those of the pod's users on this host, who must be known by the
    time that it is finished (launcher.users).
    """
    command = Command(
        places,
        "mount",
        pod,
        "--spec",
        "-",
        stdin=subprocess.PIPE,
        pass_fds=(*pass_fds, *lock.descriptors(places, pod)),
    )
    return Mounting(command, lambda: users.base(places, pod) or 0)


def umount(places: Places, pod: str, *, lazy: bool = False) -> None:
    """Unmount the root of *pod* and end its daemon."""
    _run(places, pod, "umount", *(["--lazy"] if lazy else []))


def rollback(places: Places, pod: str, layer: str) -> None:
    """Remove what *pod*, not mounted now, has written since its sealed layer *layer*, or 0."""
    _run(places, pod, "rollback", "--to", layer, "--force")


def flatten(places: Places, pod: str) -> None:
    """Merge the sealed layers of *pod* into one, which has an id of its own."""
    _run(places, pod, "flatten")


def _run(places: Places, pod: str, verb: str, *arguments: str) -> None:
    """Run a command on *pod*. It keeps the pod's lock, should this process be killed meanwhile."""
    held = lock.descriptors(places, pod)
    with Command(places, verb, pod, *arguments, pass_fds=held) as command:
        command.wait()


def identity(places: Places, directory: str | Path) -> Identity:
    """Start to compute the identity of the lower layer *directory*."""
    return Identity(places, directory)


def pack(places: Places, directory: str | Path) -> Packing:
    """Start to pack the layer *directory*."""
    packing = Packing(places)
    packing.begin(directory)
    return packing


@contextmanager
def unpack(places: Places, directory: str | Path) -> Iterator[BinaryIO]:
    """Within the block, take the OCI layer tar that the new layer *directory* is made from.

    Raises:
        StackError: the tar is refused. Nothing is left then.
    """
    with Unpacking(places) as unpacking, unpacking.into(directory) as tar:
        yield tar


class Identified:
    """Lower layers whose identities the daemon works out meanwhile. A context manager."""

    def __init__(self, places: Places, pod: str) -> None:
        self._pod = pod
        self._connection = _connect(places, pod)
        # Unknown identities of big layers take longer than any other answer.
        self._connection.settimeout(None)
        _send(self._connection, "status", identify=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def result(self) -> list[tuple[str, str]]:
        """Return path and identity of each, topmost first.

        Raises:
            StackError: one could not be computed.
        """
        status = _receive(self._connection, self._pod, "status", Status)
        return [(lower.path, cast(str, lower.identity)) for lower in status.lower]


def _request(places: Places, pod: str, op: str, kind: type[T]) -> T:
    """Make one request on the control socket of *pod*."""
    with _connect(places, pod) as connection:
        _send(connection, op)
        return _receive(connection, pod, op, kind)


def _send(connection: socket.socket, op: str, **arguments: object) -> None:
    connection.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")


def _receive(connection: socket.socket, pod: str, op: str, kind: type[T]) -> T:
    try:
        with connection.makefile("rb") as stream:
            line = stream.readline(_MAX_REPLY)
    except TimeoutError:
        hint = "is the disk below very busy? stackfs stats tells whether it goes on"
        raise StackError(f"stackfs of pod {pod!r} does not answer", hint) from None
    try:
        reply: Any = json.loads(line)
        if not reply["ok"]:
            raise StackError(reply["error"], reply.get("hint") or "")
        return msgspec.convert(reply, kind)
    except (ValueError, KeyError, TypeError) as e:
        raise StackError(f"stackfs of pod {pod!r} gave no sensible answer to {op!r}: {e}") from e


def _connect(places: Places, pod: str) -> socket.socket:
    """Connect by way of the directory's descriptor: a socket's path has at most 107 bytes."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_REPLY_SECONDS)
    try:
        run_fd = os.open(places.run(pod), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{run_fd}/stackfs.sock")
        finally:
            os.close(run_fd)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise NotMounted(
            f"pod {pod!r} is not mounted", f"mount it: stackfs mount {pod} --lower DIR"
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection
