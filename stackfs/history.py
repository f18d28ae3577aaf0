"""A pod's snapshots, mounted or not: its layers, and what they changed.

The layers of a mounted stack are opened through its daemon's descriptors: a lower directory may
lie below the mount itself, and an image is mounted nowhere else. The work is done here, so that
the daemon goes on answering the pod.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackfs import control
from stackfs.control import Refused
from stackfs.layers import whiteout
from stackfs.layers.diff import Change, changes
from stackfs.layers.layer import DIRECTORY
from stackfs.mounting import load_spec
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
        for at, fd in self.sealed:
            if snapshot in (str(at), _id(fd)):
                return at
        if snapshot == "0":
            return 0
        known = ", ".join(str(at) for at, _ in reversed(self.sealed)) or "none"
        raise Refused(f"no snapshot {snapshot!r}", f"numbers of the sealed layers: {known}")


def _id(fd: int) -> str:
    return (whiteout.attribute(whiteout.inside(fd, b"."), whiteout.LAYER_ID) or b"").decode()


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
    layers = spec.base / spec.layers_name
    return {
        "upper": [spec.upper] if spec.upper.is_dir() else [],
        "layers": [(number, layers / str(number)) for number in spec.sealed()],
        "lower": spec.lower,
    }


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
