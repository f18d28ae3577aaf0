"""A pod's snapshots, mounted or not: making one, what they changed, and going back to one.

The layers of a mounted stack are opened through its daemon's descriptors: a lower directory may
lie below the mount itself, and an image is mounted nowhere else. The work is done here, so that
the daemon goes on answering the pod.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stackfs import abi, control
from stackfs.control import Refused
from stackfs.layers import walk, whiteout
from stackfs.layers.diff import Change, changes
from stackfs.layers.layer import DIRECTORY
from stackfs.layers.work import remove
from stackfs.mounting import load_spec, lock_pod
from stackfs.places import Places
from stackfs.stack import open_lower


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a stack as O_PATH descriptors, each kind top first.

    Attributes:
        upper: none where a stack that is not mounted lacks it.
        sealed: with their numbers.
    """

    upper: list[int]
    sealed: list[tuple[int, int]]
    lowers: list[int]

    def since(self, number: int) -> tuple[list[int], list[int]]:
        """Return the layers above sealed layer *number*, and that with those below."""
        above = [fd for at, fd in self.sealed if at > number]
        below = [fd for at, fd in self.sealed if at <= number]
        return [*self.upper, *above], [*below, *self.lowers]

    def number(self, snapshot: str) -> int:
        """Return the number of the layer that a snapshot's number or id means; 0 means none.

        Raises:
            Refused: there is no such snapshot.
        """
        return find(snapshot, {at: whiteout.inside(fd, b".") for at, fd in self.sealed})


def find(snapshot: str, sealed: Mapping[int, bytes]) -> int:
    """Return the number of the layer that a snapshot's number or id means; 0 means none.

    Args:
        snapshot: what was asked for.
        sealed: the sealed layers' directories by number.

    Raises:
        Refused: there is no such snapshot.
    """
    for number, path in sealed.items():
        if snapshot == str(number):
            return number
        if snapshot == (whiteout.attribute(path, whiteout.LAYER_ID) or b"").decode():
            return number
    if snapshot == "0":
        return 0
    known = ", ".join(map(str, sorted(sealed))) or "none"
    raise Refused(f"no snapshot {snapshot!r}", f"numbers of the sealed layers: {known}")


@contextlib.contextmanager
def open_layers(places: Places, pod: str) -> Iterator[Layers]:
    """Yield the layers of a pod.

    Raises:
        Refused: there is no such pod.
    """
    try:
        reply = control.request(places.run(pod) / "stackfs.sock", "descriptors")
    except (FileNotFoundError, ConnectionRefusedError):
        reply = _by_path(places, pod)
    with contextlib.ExitStack() as opened:

        def opening(path: int | Path) -> int:
            if isinstance(path, Path):
                fd = open_lower(path)
            else:
                fd = os.open(f"/proc/{reply['pid']}/fd/{path}", DIRECTORY & ~os.O_NOFOLLOW)
            opened.callback(os.close, fd)
            return fd

        yield Layers(
            [opening(path) for path in reply["upper"]],
            [(number, opening(path)) for number, path in reply["layers"]],
            [opening(path) for path in reply["lower"]],
        )


def _by_path(places: Places, pod: str) -> dict[str, Any]:
    spec = load_spec(places, pod)
    return {
        "upper": [spec.upper] if spec.upper.is_dir() else [],
        "layers": [(number, spec.layer(number)) for number in spec.sealed()],
        "lower": spec.lower,
    }


def snapshot(places: Places, pod: str) -> dict[str, Any]:
    """Make what a pod has written so far its newest sealed layer, which is on disk afterwards.

    What the kernel still holds of it is written out before, while programs go on to write; they
    are stopped for the sealing alone.

    Returns:
        `id` and `path` of the layer and `stopped_ms`, for how long no request was answered.

    Raises:
        Refused: the pod is not mounted.
    """
    control.ask(places, pod, "status")
    _sync(places.root(pod))
    _sync(load_spec(places, pod).base)  # most of it: what is left for afterwards is little
    reply = control.ask(places, pod, "snapshot")
    layer: dict[str, Any] = reply["layer"]
    _sync(Path(layer["path"]))
    return {**layer, "stopped_ms": reply["stopped_ms"]}


def _sync(directory: Path) -> None:
    """Write out the file system of a directory."""
    with _opened(directory) as fd:
        try:
            abi.syncfs(fd)
        except OSError as e:  # it is this one that is full
            raise OSError(e.errno, os.strerror(e.errno or 0), os.fspath(directory)) from e


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, walk.DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def diff(places: Places, pod: str, since: str = "0") -> list[Change]:
    """Return what a pod changed of its lower layers, or after a snapshot.

    Args:
        places: where everything is.
        pod: a valid name.
        since: number or id of a snapshot, "0" for the lower layers.

    Raises:
        Refused: there is no such pod, or no such snapshot.
    """
    with open_layers(places, pod) as layers:
        return changes(*layers.since(layers.number(since)))


def rollback(places: Places, pod: str, snapshot: str, *, force: bool) -> Path | None:
    """Let a pod that is not mounted be as it was at a snapshot.

    What was written since is moved, newest first: each step leaves a state that was there before.

    Args:
        places: where everything is.
        pod: a valid name.
        snapshot: number or id; "0" for the lower layers alone.
        force: remove what was written since.

    Returns:
        Where that is now, None if there was nothing or it was removed.

    Raises:
        Refused: the pod is mounted, or there is no such pod or snapshot.
    """
    spec = load_spec(places, pod)
    with lock_pod(places.run(pod)) as lock:
        if lock is None:
            raise Refused(f"{pod} is mounted", f"end what runs in it, then: stackfs umount {pod}")
        sealed = {number: spec.layer(number) for number in spec.sealed()}
        target = find(snapshot, {number: os.fsencode(path) for number, path in sealed.items()})
        paths = [spec.upper, *(path for number, path in sealed.items() if number > target)]
        paths = [path for path in paths if path.exists()]
        if not paths:
            return None
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = spec.base / spec.aside_name / now
        aside.mkdir(parents=True, mode=0o700)
        for path in paths:
            path.rename(aside / path.name)
        _sync(aside)
        if not force:
            return aside
        with _opened(aside.parent) as fd:
            remove(fd, os.fsencode(now))
        return None
