"""The pod's files at a checkpoint: sealed, and put into the archive.

The archive holds the sealed layers; the lower layers it only names, by identity (what is in them).
Layers are topmost first here, as stackfs has them; in the archive they are bottommost first.
"""

import os
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from msgspec import Struct

from ckpt import stack
from ckpt.archive.schema import Base
from ckpt.layers import make_durable
from ckpt.stack import SealedLayer
from ckpt.stackcommand import Packing
from launcher.places import Places

if TYPE_CHECKING:
    from ckpt.archive.write import ArchiveWriter


class Stack(Struct, frozen=True):
    """A pod's file system at the moment of a checkpoint.

    Attributes:
        layers: sealed layers, topmost first; they never change.
    """

    places: Places
    pod: str
    layers: list[SealedLayer]


def seal(places: Places, pod: str) -> Stack:
    """Seal what the pod has written; takes the time of two messages, whatever the size.

    The caller has stopped the pod's processes and called syncfs(2) on its root. Where nothing has
    changed since the newest layer, that stays the newest.

    Raises:
        StackError: it is not mounted, or stackfs could not.
    """
    status = stack.status(places, pod)
    layers = status.layers if _is_unchanged(status) else stack.snapshot(places, pod).layers
    return Stack(places, pod, layers)


def _is_unchanged(status: stack.Status) -> bool:
    """Is the upper as the newest layer left it: empty, and `/` with the same owner and mode?"""
    if not (status.upper_empty and status.layers):
        return False
    upper, newest = os.stat(status.upper), os.stat(status.layers[0].path)
    return (upper.st_mode, upper.st_uid, upper.st_gid) == (
        newest.st_mode,
        newest.st_uid,
        newest.st_gid,
    )


def write_layers(
    writer: "ArchiveWriter",
    sealed: Stack,
    packing: Packing,
    below: Sequence[str] = (),
    *,
    durable: bool = True,
) -> None:
    """Put the sealed layers into the archive, and the identities of the lower ones.

    The pod may run meanwhile. Afterwards the layers are durable here, too: a restart on this host
    uses them by their ids, and must not find them half written after a power failure.

    Args:
        writer: of the archive.
        sealed: what to put in.
        packing: a packer that was started before the time counted.
        below: ids of the bottommost sealed layers, which the archive shall only name.
        durable: False: the caller makes the layers durable.

    Raises:
        StackError: a layer cannot be packed, or an identity not be computed.
        ValueError: the layers *below* are not the bottommost ones.
    """
    upwards = sealed.layers[::-1]
    if [layer.id for layer in upwards[: len(below)]] != list(below):
        raise ValueError(f"the layers of pod {sealed.pod!r} are not what they were: try again")
    writer.set_below(list(below))
    there = len(below) or writer.share_layers([layer.id for layer in upwards])
    with stack.identify(sealed.places, sealed.pod) as identified, ExitStack() as undo:

        def begin(layer: SealedLayer) -> tuple[str, Packing]:
            packer = ready.pop() if ready else Packing(sealed.places)
            undo.callback(packer.abandon)
            packer.begin(layer.path)
            return layer.id, packer

        ready = [packing]
        waiting = deque(upwards[there:])
        begun = deque(begin(waiting.popleft()) for _ in range(min(2, len(waiting))))
        if durable:
            make_durable(sealed.places.state(sealed.pod))
        while begun:
            layer_id, packer = begun.popleft()
            with packer as tar:
                writer.add_layer(layer_id, tar)
            if waiting:
                begun.append(begin(waiting.popleft()))
        writer.set_base([Base(*lower) for lower in identified.result()])
