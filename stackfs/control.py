"""The daemon's control socket: one JSON object per line each way (ARCHITECTURE.md)."""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackfs.places import Places

if TYPE_CHECKING:
    import trio

Reply = dict[str, Any]
Handler = Callable[[dict[str, Any]], Awaitable[Reply]]

MAX_REQUEST_BYTES = 65536


class Refused(Exception):  # noqa: N818 (it is an answer, not a fault)
    """The daemon cannot do what was asked: a message for people, and what to do about it."""

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.error = error
        self.hint = hint


def refusal(error: OSError) -> Refused:
    """Return *error* in words; of a full disk, which one that is."""
    where, hint = os.fsdecode(error.filename or ""), ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        states = os.fspath(Places.from_environment().states())
        where = where if os.path.isabs(where) else states
        hint = f"make room there: df {where if os.path.isdir(where) else os.path.dirname(where)}"
    elif isinstance(error, PermissionError) and os.geteuid():
        hint = "pods are root's to work on"
    return Refused(f"{error.strerror or error}{f': {where}' if where else ''}", hint)


class NoAnswer(Refused):
    """The daemon ended instead of answering."""


def request(path: Path, op: str, **arguments: object) -> Reply:
    """Ask the daemon that listens at *path* and return its reply.

    Raises:
        Refused: it answered with an error.
        NoAnswer: it ended meanwhile.
        OSError: nobody listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as at:
        with _short(path) as name:
            try:
                at.connect(name)
            except OSError as e:
                e.filename = os.fspath(path)
                raise
        line = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError), at.makefile("rb") as lines:
            at.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            line = lines.readline()
    if not line:
        raise NoAnswer("the daemon ended without an answer", f"see {path.with_suffix('.log')}")
    reply: Reply = json.loads(line)
    if not reply.pop("ok"):
        raise Refused(reply["error"], reply.get("hint", ""))
    return reply


def ask(places: Places, pod: str, op: str, **arguments: object) -> Reply:
    """Ask the daemon of a pod.

    Raises:
        Refused: it answered with an error, or the pod is not mounted.
    """
    try:
        return request(places.run(pod) / "stackfs.sock", op, **arguments)
    except (FileNotFoundError, ConnectionRefusedError) as e:
        raise Refused(f"{pod} is not mounted", f"stackfs mount {pod} mounts it") from e


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a name for *path* that fits into a socket address (unix(7): 108 bytes)."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


async def serve(listener: "trio.SocketListener", handlers: dict[str, Handler]) -> None:
    """Answer requests until cancelled."""
    import trio

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await _answer_lines(stream, handlers)
            except trio.BrokenResourceError:
                return  # the caller did not wait for its answer

    await trio.serve_listeners(answer, [listener])


async def _answer_lines(stream: "trio.SocketStream", handlers: dict[str, Handler]) -> None:
    import trio

    pending = b""
    async for chunk in stream:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            with trio.CancelScope(shield=True):  # the answer to "quit" goes out all the same
                reply = await _answer(line, handlers)
                await stream.send_all(json.dumps(reply).encode() + b"\n")
        if len(pending) > MAX_REQUEST_BYTES:
            return


async def _answer(line: bytes, handlers: dict[str, Handler]) -> Reply:
    try:
        asked = json.loads(line)
        handler = handlers[asked["op"]]
    except (ValueError, KeyError, TypeError) as e:
        return {"ok": False, "error": f"not a request: {e!r}"}
    try:
        return {"ok": True, **await handler(asked)}
    except Refused as e:
        return {"ok": False, "error": e.error, "hint": e.hint}
    except OSError as e:
        refused = refusal(e)
        return {"ok": False, "error": f"{asked['op']}: {refused.error}", "hint": refused.hint}


def clear(run: Path) -> None:
    """Take away what tells of a daemon."""
    for name in ("stackfs.json", "stackfs.sock"):
        (run / name).unlink(missing_ok=True)


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at *path*, for root only; what was there is removed."""
    path.unlink(missing_ok=True)
    at = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with _short(path) as name:
        at.bind(name)
    path.chmod(0o600)
    at.listen(16)
    return at
