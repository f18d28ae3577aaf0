"""What a holder keeps for the daemons of one mount, and hands to a new version of the program."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackfs.layers.layer import Layer
from stackfs.stack import Spec, Stack


@dataclass(slots=True)
class Kept:
    """What a daemon needs besides its program. All descriptors belong to the holder.

    Attributes:
        pod: the pod's name.
        point: the mount point, which is the barrier.
        run: directory of its socket, record and log.
        spec: what its stack is made of.
        lowers: the read-only layers, top first.
        base_fd: O_PATH descriptor of the directory that holds the upper layer.
        work_fd: descriptor of the work directory, with its lock.
        lock_fd: the pod's lock.
        fuse_fd: /dev/fuse.
        socket_fd: listens for control requests.
        journal_fd: what the kernel was told (journal.py).
        init: the kernel's INIT request.
        answered: whether the kernel has had its reply.
        foreground: whether the holder is the command that was called.
        ready_fd: closed when the first daemon answers; -1 where there is none.
    """

    pod: str
    point: Path
    run: Path
    spec: Spec
    lowers: list[Layer]
    base_fd: int
    work_fd: int
    lock_fd: int
    fuse_fd: int
    socket_fd: int
    journal_fd: int
    init: bytes
    answered: bool = False
    foreground: bool = False
    ready_fd: int = -1

    @classmethod
    def of(cls, pod: str, point: Path, run: Path, stack: Stack, lock_fd: int) -> "Kept":
        """Return what is to be kept of a stack, without a connection to the kernel yet."""
        return cls(
            pod=pod,
            point=point,
            run=run,
            spec=stack.spec,
            lowers=stack.lowers,
            base_fd=stack.base_fd,
            work_fd=stack.work.fd,
            lock_fd=lock_fd,
            fuse_fd=-1,
            socket_fd=-1,
            journal_fd=-1,
            init=b"",
        )

    def descriptors(self) -> set[int]:
        """Return the descriptors."""
        named = {self.base_fd, self.work_fd, self.lock_fd, self.fuse_fd}
        named |= {self.socket_fd, self.journal_fd, self.ready_fd}
        return (named | {layer.fd for layer in self.lowers}) - {-1}

    def to_json(self) -> str:
        """Return this as text."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        fields["point"], fields["run"] = os.fspath(self.point), os.fspath(self.run)
        fields["spec"] = self.spec.to_json()
        fields["lowers"] = [_layer_fields(layer) for layer in self.lowers]
        fields["init"] = self.init.hex()
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Kept":
        """Read what `to_json` returned."""
        fields = json.loads(text)
        fields["point"], fields["run"] = Path(fields["point"]), Path(fields["run"])
        fields["spec"] = Spec.from_json(fields["spec"])
        fields["lowers"] = [_layer(found) for found in fields["lowers"]]
        fields["init"] = bytes.fromhex(fields["init"])
        return cls(**fields)


def _layer_fields(layer: Layer) -> dict[str, Any]:
    image = None if layer.image is None else list(layer.image.__reduce__()[1])
    return {
        "path": os.fspath(layer.path),
        "fd": layer.fd,
        "number": layer.number,
        "numbered": layer.numbered,
        "image": image,
    }


def _layer(fields: dict[str, Any]) -> Layer:
    image = fields.pop("image")
    path = Path(fields.pop("path"))
    status = None if image is None else os.stat_result(tuple(image[0]), image[1])
    return Layer(path, image=status, **fields)


def close_all_but(keep: set[int]) -> None:
    """Close all descriptors but these and the standard ones."""
    low = 3
    for fd in sorted(fd for fd in keep if fd >= low):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, max(low, *map(int, os.listdir("/proc/self/fd"))) + 1)
