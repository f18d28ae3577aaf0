"""The directories of a stack: finding them, making them, sealing the upper one.

Beside an upper directory U lie U's work directory and its sealed layers, `U/../work` and
`U/../layers/N` for a pod's own; the highest N is the topmost. Each step leaves a state that the
next `open_stack` understands, whatever interrupts it: an upper directory that is missing is made.
"""

import fcntl
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stackfs import abi
from stackfs.layers import copying, walk, whiteout
from stackfs.layers.image import is_image, mount_image
from stackfs.layers.layer import DIRECTORY, Layer, clone
from stackfs.layers.numbers import FIRST_UPPER
from stackfs.layers.walk import exists
from stackfs.layers.work import Work

RETIRED: Final = b"merged-"
"""What begins the names, in the work directory, of layers that were merged into another one."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a stack is made of.

    Attributes:
        lower: directories and images, top first.
        upper: the writable directory.
        shift: what is added to the users and groups of the layers for the kernel (shift.py); 0:
            nothing.
    """

    lower: tuple[Path, ...]
    upper: Path
    shift: int = 0

    @property
    def base(self) -> Path:
        """The directory that holds the upper, work and layers directories."""
        return self.upper.parent

    @property
    def work_name(self) -> str:
        """Name of the work directory in `base`."""
        return "work" if self.upper.name == "upper" else f"{self.upper.name}.work"

    @property
    def layers_name(self) -> str:
        """Name of the directory of sealed layers in `base`."""
        return "layers" if self.upper.name == "upper" else f"{self.upper.name}.layers"

    @property
    def aside_name(self) -> str:
        """Name of the directory in `base` for what a rollback keeps."""
        return "aside" if self.upper.name == "upper" else f"{self.upper.name}.aside"

    def layer(self, number: int) -> Path:
        """Return the directory of a sealed layer."""
        return self.base / self.layers_name / str(number)

    def present(self) -> list[int]:
        """Return the numbers of the sealed layers that are there, highest first."""
        try:
            names = os.listdir(self.base / self.layers_name)
        except FileNotFoundError:
            return []
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)

    def covered(self) -> set[int]:
        """Return the numbers of the layers that have been merged into a higher one."""
        found: set[int] = set()
        for number in self.present():
            lowest = whiteout.attribute(os.fsencode(self.layer(number)), whiteout.COVERS)
            if lowest is not None:
                found.update(range(int(lowest), number))
        return found

    def sealed(self) -> list[int]:
        """Return the numbers of the sealed layers of the stack, top first."""
        covered = self.covered()
        return [number for number in self.present() if number not in covered]

    def is_lost(self) -> bool:
        """Is there nothing of an upper directory? A fresh one follows a seal, and a rollback."""
        traces = (self.upper, self.base / self.aside_name)
        return not (any(path.is_dir() for path in traces) or self.sealed())

    def save(self, path: Path) -> None:
        """Write this to a file, whole or not at all."""
        text = json.dumps(self.to_json())
        new = path.with_suffix(".new")
        new.write_text(text + "\n")
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Spec":
        """Read what `save` wrote."""
        return cls.from_json(json.loads(path.read_text()))

    def to_json(self) -> dict[str, Any]:
        """Return this as what json.dumps takes."""
        lower = [os.fspath(p) for p in self.lower]
        return {"lower": lower, "upper": os.fspath(self.upper), "shift": self.shift}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Spec":
        """Take what `to_json` returned."""
        lower = tuple(Path(p) for p in found["lower"])
        return cls(lower, Path(found["upper"]), found.get("shift", 0))


@dataclass(slots=True)
class Stack:
    """The open layers of a stack. They are all reached through private copies of their mounts.

    Attributes:
        spec: what it was made from.
        base_fd: O_PATH descriptor of the directory that holds the upper layer.
        lowers: the read-only layers given, top first.
        sealed: former upper layers, top first.
    """

    spec: Spec
    base_fd: int
    lowers: list[Layer]
    sealed: list[Layer]
    upper: Layer
    work: Work
    removed: list[str]

    @property
    def below(self) -> list[Layer]:
        """Everything below the upper layer, top first."""
        return [*self.sealed, *self.lowers]

    def descriptors(self) -> list[int]:
        """Return the descriptors that it owns."""
        return [self.base_fd, self.work.fd, self.upper.fd, *(layer.fd for layer in self.below)]

    def close(self) -> None:
        """Close them."""
        for fd in self.descriptors():
            os.close(fd)

    def seal(self) -> Layer:
        """Make the upper directory the newest sealed layer; return the fresh, empty one.

        The new upper directory is made first, then two renames change places: between them there
        is no upper directory, which `open_stack` mends as it would make the first one.
        """
        sealed = self.upper
        index = int(self.sealed[0].path.name) + 1 if self.sealed else 1
        sealed.id = _identify(sealed.fd)
        name = os.fsencode(self.spec.upper.name)
        at = os.fsencode(f"{self.spec.layers_name}/{index}")
        with self.work.temporary() as temporary:
            _make_upper(self.work, temporary, sealed.fd, sealed.number + 1)
            os.rename(name, at, src_dir_fd=self.base_fd, dst_dir_fd=self.base_fd)
            try:
                os.rename(temporary, name, src_dir_fd=self.work.fd, dst_dir_fd=self.base_fd)
            except OSError:
                os.rename(at, name, src_dir_fd=self.base_fd, dst_dir_fd=self.base_fd)
                raise
        sealed.path = self.spec.base / os.fsdecode(at)
        self.sealed.insert(0, sealed)
        self.upper = _open_upper(self.spec, self.base_fd, sealed.number + 1)
        return self.upper

    def replace(self, made: bytes, covers: int, number: int) -> tuple[list[Layer], Layer]:
        """Put a layer in the place of those that were merged into it, by one rename.

        Args:
            made: its name in the work directory.
            covers: number of the lowest of them.
            number: of the highest, which becomes its own.

        Returns:
            Those that it replaces, which the caller closes, and the new one.
        """
        old = [layer for layer in self.sealed if covers <= int(layer.path.name) <= number]
        at = os.fsencode(f"{self.spec.layers_name}/{number}")
        abi.renameat2(self.work.fd, made, self.base_fd, at, abi.RENAME_EXCHANGE)
        new = _open_sealed(self.spec, number)
        self.sealed = [new if layer is old[0] else layer for layer in self.sealed]
        self.sealed = [layer for layer in self.sealed if layer not in old]
        retire(self.spec, self.base_fd, self.work)
        return old, new


def retire(spec: Spec, base_fd: int, work: Work) -> None:
    """Move the layers that were merged into another one to the work directory."""
    for number in spec.covered().intersection(spec.present()):
        at = os.fsencode(f"{spec.layers_name}/{number}")
        os.rename(at, RETIRED + b"%d" % number, src_dir_fd=base_fd, dst_dir_fd=work.fd)


def open_stack(spec: Spec, given: Sequence[str]) -> Stack:
    """Open the layers of a stack, making the directories that are not there yet.

    Args:
        spec: what it is made of.
        given: a path to each lower layer now, which may be one in /proc/self/fd.

    Raises:
        OSError: a lower layer cannot be opened, or the file system of the upper one cannot
            hold what a stack writes.
    """
    lowers = [
        _open_lower(path, now, len(spec.lower) - index)
        for index, (path, now) in enumerate(zip(spec.lower, given, strict=True))
    ]
    base_fd = clone(spec.base, read_only=False)
    for name in (spec.work_name, spec.layers_name):
        _ensure_directory(base_fd, name)
    work = Work(_lock_work(spec, base_fd))
    retire(spec, base_fd, work)  # a merge may have been interrupted
    removed = work.clear()
    stack = _open_written(spec, base_fd, work, lowers)
    stack.removed += removed
    return stack


def resume_stack(spec: Spec, base_fd: int, work_fd: int, lowers: list[Layer]) -> Stack:
    """Open what a pod has written where the rest of the stack is open, after a daemon has died.

    `stackfs flatten` may be at work meanwhile, and goes on.
    """
    work = Work(work_fd)
    retire(spec, base_fd, work)
    work.clear_own()
    return _open_written(spec, base_fd, work, lowers)


def _open_written(spec: Spec, base_fd: int, work: Work, lowers: list[Layer]) -> Stack:
    sealed = [_open_sealed(spec, index) for index in spec.sealed()]
    upper_name = os.fsencode(spec.upper.name)
    top, number = _top(sealed, lowers)
    if not exists(base_fd, upper_name):
        with work.temporary() as temporary:
            _make_upper(work, temporary, top, number)
            os.rename(temporary, upper_name, src_dir_fd=work.fd, dst_dir_fd=base_fd)
    _check_abilities(work)
    upper = _open_upper(spec, base_fd, number)
    return Stack(spec, base_fd, lowers, sealed, upper, work, removed=[])


def _lock_work(spec: Spec, base_fd: int) -> int:
    """Return a descriptor of the work directory that keeps every other stack out of it.

    Raises:
        BlockingIOError: another stack has this upper directory; `filename` says which.
    """
    fd = os.open(spec.work_name, walk.DIRECTORY, dir_fd=base_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(fd)
        raise BlockingIOError(e.errno, "used by another stack", os.fspath(spec.upper)) from e
    return fd


def _top(sealed: list[Layer], lowers: list[Layer]) -> tuple[int, int]:
    """Return the layer that a new upper one looks like, and the new one's number."""
    if sealed:
        return sealed[0].fd, sealed[0].number + 1
    return lowers[0].fd, FIRST_UPPER


def _open_lower(path: Path, now: str, number: int) -> Layer:
    fd = open_lower(now)
    numbered = _mark(fd, whiteout.LAYER_NUMBER) is not None
    status = os.stat(now)
    image = status if stat.S_ISREG(status.st_mode) else None
    return Layer(path, fd, number, numbered=numbered, image=image)


def open_lower(path: str | Path) -> int:
    """Return an O_PATH descriptor of a lower layer, a directory or an image, read-only."""
    return mount_image(path) if is_image(path) else clone(path, read_only=True)


def _open_sealed(spec: Spec, index: int) -> Layer:
    path = spec.layer(index)
    return sealed_layer(path, clone(path, read_only=True))


def sealed_layer(path: Path, fd: int) -> Layer:
    """Return the sealed layer whose root directory is *fd*."""
    number = _mark(fd, whiteout.LAYER_NUMBER) or FIRST_UPPER + int(path.name) - 1
    return Layer(path, fd, int(number), numbered=True, id=_mark(fd, whiteout.LAYER_ID))


def _open_upper(spec: Spec, base_fd: int, number: int) -> Layer:
    fd = os.open(spec.upper.name, DIRECTORY, dir_fd=base_fd)
    found = _mark(fd, whiteout.LAYER_NUMBER)
    if found is None:  # a directory that was given, not made here
        os.setxattr(whiteout.inside(fd, b"."), whiteout.LAYER_NUMBER, b"%d" % number)
        os.setxattr(whiteout.inside(fd, b"."), whiteout.MOVED, b"y")  # as far as is known
    return Layer(spec.upper, fd, int(found or number), numbered=True, writable=True)


def _make_upper(work: Work, name: bytes, like_fd: int, number: int) -> None:
    """Make a directory that looks as the root directory of the layer below it."""
    status = os.stat(b".", dir_fd=like_fd)
    os.mkdir(name, 0o700, dir_fd=work.fd)
    path = whiteout.inside(work.fd, name)
    os.setxattr(path, whiteout.LAYER_NUMBER, b"%d" % number)
    xattrs = copying.read_xattrs(whiteout.inside(like_fd, b"."), follow=False)
    copying.copy_attributes(work.fd, name, status, xattrs)


def _identify(fd: int) -> str:
    """Return the id of a layer, giving it one if it has none."""
    found = _mark(fd, whiteout.LAYER_ID)
    if found is None:
        found = os.urandom(16).hex()
        os.setxattr(whiteout.inside(fd, b"."), whiteout.LAYER_ID, found.encode())
    return found


def _mark(fd: int, name: str) -> str | None:
    value = whiteout.attribute(whiteout.inside(fd, b"."), name)
    return None if value is None else value.decode("ascii")


def _ensure_directory(dir_fd: int, name: str) -> None:
    if not exists(dir_fd, os.fsencode(name)):
        os.mkdir(name, 0o700, dir_fd=dir_fd)


def _check_abilities(work: Work) -> None:
    """Try what a stack needs of the file system of its upper layer."""
    with work.temporary() as one, work.temporary() as two:
        os.mknod(one, stat.S_IFREG | 0o600, dir_fd=work.fd)
        copying.set_number(work.fd, one, FIRST_UPPER)
        abi.renameat2(work.fd, one, work.fd, two, abi.RENAME_WHITEOUT)
