"""Starting and ending a pod's daemon: `stackfs mount`, `umount` and `list`."""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from stackfs import abi, control, light, mounts
from stackfs.control import Refused
from stackfs.journal import Journal
from stackfs.kept import Kept, close_all_but
from stackfs.places import Places
from stackfs.shift import COUNT, MOST
from stackfs.stack import Spec, Stack, open_stack

UNMOUNT_SECONDS = 30
"""How long an unmounted daemon may take to write its last pages and end."""


@dataclass(frozen=True, slots=True)
class Request:
    """What `stackfs mount` was asked for; None where it was not said."""

    lower: tuple[str, ...] | None = None
    upper: str | None = None
    shift: int | None = None

    def __post_init__(self) -> None:
        if self.shift and not COUNT <= self.shift <= MOST:
            raise Refused(f"ids cannot be shifted by {self.shift}", f"by {COUNT} to {MOST}, or 0")


def read_request(text: TextIO) -> Request:
    """Read `{"lower": [DIR…], "upper": DIR or null, "shift": BASE}`, without the last two or with.

    Raises:
        Refused: it is not of that form.
    """
    try:
        found = json.load(text)
        lower, upper, shift = found["lower"], found.get("upper"), found.get("shift")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Refused(f"the specification cannot be read: {e!r}") from e
    if not isinstance(lower, list) or not all(isinstance(path, str) for path in lower):
        raise Refused("the specification's 'lower' is not a list of directories")
    if not isinstance(shift, int | None):
        raise Refused("the specification's 'shift' is not a number")
    return Request(tuple(lower), upper, shift)


def mount(places: Places, pod: str, ask: Callable[[], Request], *, foreground: bool) -> None:
    """Mount a pod's stack; return when its root answers, in the foreground when it has ended.

    Args:
        places: where everything is.
        pod: a valid name.
        ask: returns the request, called after everything has been imported.
        foreground: serve in this process.

    Raises:
        Refused: it cannot be mounted.
        OSError: a directory cannot be opened or made.
    """
    light.import_trio()  # heavy: before the fork and before the request is read
    import stackfs.daemon  # noqa: F401

    request = ask()
    spec = _resolve(places, pod, request)  # of a pod that is not there nothing is made
    _check_apart(spec)
    point, run = places.barrier(pod), places.run(pod)
    for path in (point, places.state(pod)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    with lock_pod(run) as lock:
        if lock is None:
            raise Refused(f"{pod} is mounted already", f"stackfs umount {pod} ends it")
        if request.lower is None:
            _clear_stale(point)
        _check_upper(places, pod, spec)
        stack = _open(spec, request)
        _clear_stale(point)
        spec.save(places.state(pod) / "stack.json")
        if foreground:
            kept = _keep(pod, point, run, stack, lock)
            kept.foreground = True
            _hold(kept, stack, lambda: None)
        else:
            _fork(pod, point, run, stack, lock)
    if not foreground:
        os.stat(places.root(pod))


@contextlib.contextmanager
def lock_pod(run: Path) -> Iterator[int | None]:
    """Yield a descriptor that holds the pod's lock as long as it is open anywhere, or None.

    The daemon inherits it: whoever gets the lock knows that no daemon lives.
    """
    fd = _open_lock(run)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _open_lock(run: Path) -> int:
    """Open the lock in a directory that a reboot forgets, and that who finds it empty removes."""
    run.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            run.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):  # it was removed between the two
            return os.open(run / "stackfs.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _resolve(places: Places, pod: str, request: Request) -> Spec:
    """Return the layers that are meant, by the names that stack.json will hold."""
    if request.lower is None:
        spec = load_spec(places, pod)
        if request.upper is not None:
            spec = replace(spec, upper=Path(request.upper).absolute())
        return spec if request.shift is None else replace(spec, shift=request.shift)
    if not request.lower:
        raise Refused("a stack needs at least one lower layer", "say --lower DIR")
    upper = Path(request.upper).absolute() if request.upper else places.state(pod) / "upper"
    return Spec(tuple(_real_name(path) for path in request.lower), upper, request.shift or 0)


def _check_apart(spec: Spec) -> None:
    """Refuse an upper directory by which a pod would change a lower layer.

    That a lower layer has the upper directory in it is its owner's affair: it may be `/`.
    """
    upper = Path(os.path.realpath(spec.upper))
    for lower in spec.lower:
        if Path(os.path.realpath(lower)).is_relative_to(upper):
            error = f"the upper directory {spec.upper} would change the lower layer {lower}"
            raise Refused(error, "give it another with --upper")


def _check_upper(places: Places, pod: str, spec: Spec) -> None:
    """Refuse to make the upper directory a second time: what the pod has written would be hidden.

    Its disk may not be mounted, or its name be misspelt.
    """
    if spec.is_lost() and (places.state(pod) / "stack.json").exists():
        error = f"the upper directory {spec.upper} is missing, and {pod} was mounted before"
        raise Refused(error, f"mount its disk, or begin with no files: mkdir {spec.upper}")


def load_spec(places: Places, pod: str) -> Spec:
    """Return what a pod's stack was made of when it was last mounted.

    Raises:
        Refused: there is no such pod, or its record cannot be read.
    """
    path = places.state(pod) / "stack.json"
    try:
        return Spec.load(path)
    except FileNotFoundError as e:
        raise Refused(
            f"{pod} has not been mounted before", f"stackfs mount {pod} --lower DIR mounts it"
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise Refused(f"{path} cannot be read: {e!r}", "mount again with --lower DIR") from e


def _real_name(path: str) -> Path:
    """Return a name that outlives this process: /proc/self/fd/N says nothing to the next one."""
    if path.startswith("/proc/self/fd/"):
        return Path(os.readlink(path))
    return Path(path).absolute()


def _open(spec: Spec, request: Request) -> Stack:
    """Open the layers, by descriptor where they were given so."""
    given = request.lower or tuple(os.fspath(path) for path in spec.lower)
    try:
        return open_stack(spec, given)
    except FileNotFoundError as e:
        raise Refused(f"no such directory: {_text(e.filename)}", "every layer must exist") from e
    except NotADirectoryError as e:
        raise Refused(f"not a directory: {_text(e.filename)}") from e


def _text(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, str | bytes) else str(path)


def _clear_stale(point: Path) -> None:
    """Take away what a daemon that was killed left mounted."""
    while mounts.stack_at(point) is not None:
        abi.umount2(os.fspath(point), abi.MNT_DETACH)


def _fork(pod: str, point: Path, run: Path, stack: Stack, lock: int) -> None:
    """Serve in a child; return when it is ready."""
    answer, ready = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        status = 1
        try:
            _detach(run, {lock, ready, *stack.descriptors()})
            status = _hold_and_tell(pod, point, run, stack, (lock, ready))
        finally:
            os._exit(status)
    os.close(ready)
    stack.close()
    with os.fdopen(answer, "rb") as told:
        text = told.read()
    if text != b"ready":
        reply = json.loads(text or b'["the daemon ended while it started", ""]')
        raise Refused(reply[0], reply[1] or f"see {run / 'stackfs.log'}")


def _hold_and_tell(pod: str, point: Path, run: Path, stack: Stack, fds: tuple[int, int]) -> int:
    lock, ready = fds

    def tell(text: bytes) -> None:
        os.write(ready, text)
        os.close(ready)

    try:
        kept = _keep(pod, point, run, stack, lock)
    except Refused as e:
        tell(json.dumps([e.error, e.hint]).encode())
        return 1
    return _hold(kept, stack, lambda: tell(b"ready"))


def _detach(run: Path, keep: set[int]) -> None:
    """Become a daemon: a session of its own, no descriptor of the caller, a log."""
    os.setsid()
    os.chdir("/")
    log = os.open(run / "stackfs.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open("/dev/null", os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    close_all_but(keep)


def _keep(pod: str, point: Path, run: Path, stack: Stack, lock: int) -> Kept:
    """Mount, and return what the daemons will need.

    Raises:
        Refused: it cannot be mounted.
    """
    from stackfs import connection

    kept = Kept.of(pod, point, run, stack, lock)
    kept.journal_fd = Journal().fd
    kept.socket_fd = control.listen(run / "stackfs.sock").detach()
    try:
        kept.fuse_fd, kept.init = connection.mount(pod, point)
    except OSError as e:
        raise Refused(f"cannot mount at {point}: {e}", "is /dev/fuse there?") from e
    return kept


def _hold(kept: Kept, stack: Stack, ready: Callable[[], None]) -> int:
    import logging

    from stackfs import holder

    holder.set_up_log()
    for line in stack.removed:
        logging.getLogger("stackfs").warning(line)
    status = holder.hold(kept, stack, ready)
    if status == 0:
        control.clear(kept.run)
    return status


def umount(places: Places, pod: str, *, lazy: bool) -> None:
    """Unmount a pod's stack and wait for its daemon to end.

    Args:
        places: where everything is.
        pod: a valid name.
        lazy: take the mount away although it is in use; its daemon ends with its last user.

    Raises:
        Refused: it is not mounted, or in use.
    """
    point, run = places.barrier(pod), places.run(pod)
    found, record_path = mounts.stack_at(point), run / "stackfs.json"
    if found is None and not record_path.exists():
        raise Refused(f"{pod} is not mounted", "stackfs list shows what is")
    with lock_pod(run) as lock:
        if lock is not None:  # its daemon was killed
            _clear_stale(point)
            record_path.unlink(missing_ok=True)
            return
    if found is None:
        raise Refused(f"{pod} was unmounted, but is still in use")
    record = json.loads(record_path.read_text())
    own = {record["pid"], record["holder"]}
    if not lazy and (users := _users(found, own)):
        raise _busy(pod, users)
    try:
        _quit(places, pod, lazy=lazy)
    except Refused as e:
        raise _busy(pod, _users(found, own)) from e
    if not lazy:
        _await_end(run)


def upgrade(places: Places, pod: str) -> None:
    """Replace a pod's daemon by one of the program that runs now.

    Raises:
        Refused: it is not mounted, or the new daemon does not start; then the old one goes on.
    """
    from stackfs import holder

    path = places.run(pod) / "stackfs.sock"
    try:
        before = control.request(path, "status")["holder"]
        with contextlib.suppress(control.NoAnswer):  # it has ended, to be replaced
            control.request(path, "upgrade", program=holder.PROGRAM)
        after = control.request(path, "status")["holder"]
    except (FileNotFoundError, ConnectionRefusedError) as e:
        raise Refused(f"{pod} is not mounted", f"stackfs mount {pod} mounts it") from e
    if after == before:
        log = places.run(pod) / "stackfs.log"
        raise Refused("the new daemon does not start; the old one goes on", f"see {log}")


def _quit(places: Places, pod: str, *, lazy: bool) -> None:
    """Have the daemon unmount; one that is killed meanwhile has a successor."""
    while True:
        with contextlib.suppress(control.NoAnswer):
            control.request(places.run(pod) / "stackfs.sock", "quit", lazy=lazy)
            return
        if mounts.stack_at(places.barrier(pod)) is None:
            return


def _users(mount: mounts.Mount, own: set[int]) -> list[str]:
    """Return what keeps a mount busy, in words; not its *own* processes."""
    mounted = [f"the mount at {point}" for point in mounts.below(mount)]
    return mounted + [f"{name} ({pid})" for pid, name in mounts.users(mount, own)]


def _busy(pod: str, users: list[str]) -> Refused:
    more = f" and {len(users) - 8} more" if len(users) > 8 else ""
    by = f" by {', '.join(users[:8])}{more}" if users else ""
    return Refused(
        f"{pod} is in use{by}",
        f"end them first, or take the mount away with: stackfs umount --lazy {pod}",
    )


def _await_end(run: Path) -> None:
    """Wait until the daemon has given its lock up."""
    deadline = time.monotonic() + UNMOUNT_SECONDS
    while time.monotonic() < deadline:
        with lock_pod(run) as lock:
            if lock is not None:
                return
        time.sleep(0.005)
    raise Refused("the mount has gone, but its daemon still runs", f"see {run / 'stackfs.log'}")


def stacks(places: Places) -> list[dict[str, Any]]:
    """Return a record of each pod whose daemon has left one, by name.

    Raises:
        PermissionError: they are not the caller's to read.
    """
    found = []
    for run in sorted(places.runs().glob("*/")):
        path = run / "stackfs.json"
        with contextlib.suppress(FileNotFoundError):
            record: dict[str, Any] = json.loads(path.read_text())
            with lock_pod(run) as lock:
                alive = lock is None
            point = places.barrier(record["pod"])
            record["mounted"] = alive and mounts.stack_at(point) is not None
            found.append(record)
    return found
