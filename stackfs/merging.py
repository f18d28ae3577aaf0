"""`stackfs flatten`: merging a pod's sealed layers while it runs."""

import contextlib
import fcntl
import math
import os
from typing import Any, Final

from stackfs import abi, control
from stackfs.control import Refused
from stackfs.history import open_layers
from stackfs.layers import walk, whiteout
from stackfs.layers.flatten import flatten as merge_layers
from stackfs.layers.layer import Layer
from stackfs.layers.work import leftovers, remove
from stackfs.mounting import load_spec, lock_pod
from stackfs.places import Places
from stackfs.stack import RETIRED, open_stack, sealed_layer

_MADE: Final = b"flatten"
"""Name of the merged layer in the work directory."""


def flatten(places: Places, pod: str, below: str | None = None) -> dict[str, Any] | None:
    """Merge a pod's sealed layers into one, which shows the same and has an id of its own.

    The copy is made and written out here, then put into place by one rename: of a mounted pod by
    its daemon. Nothing is lost wherever this ends.

    Args:
        places: where everything is.
        pod: a valid name.
        below: number or id of a snapshot; only the layers below it are merged. None for all.

    Returns:
        `id` and `path` of the layer and `merged`, the ids of those that it replaces; None if
        there were not two to merge.

    Raises:
        Refused: there is no such pod or snapshot, or one of the layers is being packed.
    """
    spec = load_spec(places, pod)
    with contextlib.ExitStack() as held:
        stack = None
        if held.enter_context(lock_pod(places.run(pod))) is not None:
            stack = open_stack(spec, [os.fspath(path) for path in spec.lower])
            held.callback(stack.close)
        layers = held.enter_context(open_layers(places, pod))
        limit = math.inf if below is None else layers.number(below)
        chosen = [(number, fd) for number, fd in layers.sealed if number < limit]
        if len(chosen) < 2:
            return None
        for number, fd in chosen:
            _lock_layer(held, number, fd)
        work_fd = os.open(spec.base / spec.work_name, walk.DIRECTORY)
        held.callback(os.close, work_fd)
        held.callback(_clear, work_fd)
        _clear(work_fd)
        merged = [sealed_layer(spec.layer(number), fd) for number, fd in chosen]
        covers = _merge(merged, layers.since(chosen[0][0])[1][len(chosen) :], work_fd)
        if stack is None:
            layer: dict[str, Any] = control.ask(
                places,
                pod,
                "replace",
                made=os.fsdecode(_MADE),
                covers=covers,
                number=chosen[0][0],
            )["layer"]
        else:
            old, new = stack.replace(_MADE, covers, chosen[0][0])
            for at in old:
                held.callback(os.close, at.fd)
            layer = {"id": new.id, "path": os.fspath(new.path)}
        return {**layer, "merged": [at.id for at in merged]}


def _lock_layer(held: contextlib.ExitStack, number: int, fd: int) -> None:
    """Keep `stackfs pack` away from a layer."""
    locked = os.open(b".", walk.DIRECTORY, dir_fd=fd)
    held.callback(os.close, locked)
    try:
        fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise Refused(f"layer {number} is being packed or merged", "try again later") from e


def _merge(merged: list[Layer], below: list[int], work_fd: int) -> int:
    """Make the merged layer, durable; return the number of the lowest layer that it covers."""
    merge_layers(merged, below, work_fd, _MADE)
    path = whiteout.inside(work_fd, _MADE)
    lowest = merged[-1]
    covers = whiteout.attribute(whiteout.inside(lowest.fd, b"."), whiteout.COVERS)
    covers = covers or os.fsencode(lowest.path.name)
    marks = {
        whiteout.COVERS: covers,
        whiteout.LAYER_NUMBER: b"%d" % merged[0].number,
        whiteout.LAYER_ID: os.urandom(16).hex().encode(),
    }
    for name, value in marks.items():
        os.setxattr(path, name, value)
    abi.syncfs(work_fd)
    return int(covers)


def _clear(work_fd: int) -> None:
    """Remove what a merge leaves in the work directory, finished or not."""
    for name in leftovers(work_fd):
        if name.startswith((_MADE, RETIRED)):
            remove(work_fd, name)
