"""The pod's files at a restart: installed from the archive.

The archive holds the sealed layers; the lower layers it only names, by identity (what is in them).
Layers are topmost first here, as stackfs has them; in the archive they are bottommost first.
"""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckpt import abi, stack
from ckpt.archive.schema import Base
from ckpt.stack import Lower
from ckpt.stackcommand import Identity, Mounting, Unpacking
from launcher import config
from launcher.places import Places

if TYPE_CHECKING:
    from ckpt.archive.read import Archive

_LAYER_ID: Final = "trusted.stackfs.id"
_STACK_FILES: Final = ("layers", "upper", "work", "stack.json")
"""What stackfs keeps in a pod's state directory; the log beside it is the launcher's."""


class InstallError(Exception):
    """The files of an archive cannot be installed here; nothing was changed."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@contextmanager
def identities(places: Places, directories: Sequence[str]) -> Iterator[dict[str, Identity]]:
    """Within the block, compute the identities of *directories* at the same time."""
    with ExitStack() as undo:
        running = {}
        for directory in directories:
            running[directory] = stack.identity(places, directory)
            undo.callback(running[directory].abandon)
        yield running


class Installed(Struct, frozen=True):
    """The pod's root is mounted, as the archive has it.

    Attributes:
        lowers: the lower layers that were found, topmost first.
        replaced: where the state is now that was here before; None if there was none.
    """

    lowers: list[str]
    replaced: Path | None
    _undo: ExitStack

    def undo(self) -> None:
        """Put back what this installation changed. The pod's processes are gone."""
        self._undo.close()


class Files(Struct, frozen=True):
    """What a pod's root is made of.

    Attributes:
        base: its lower layers, topmost first.
        layers: ids of its sealed layers, bottommost first.
        make: makes these in an empty directory, where the n-th gets the name n.
        known: identities of directories and images here, by path, as they are now.
    """

    base: Sequence[Base]
    layers: Sequence[str]
    make: Callable[[Path], None]
    known: Mapping[str, str] = {}


def files_of(archive: "Archive", places: Places) -> Files:
    """Return what *archive* has of files; its layers are durable when they are made."""
    ids = [*archive.manifest.below, *(layer.id for layer in archive.layers)]
    return Files(archive.manifest.base, ids, partial(_extract, archive, places))


def install(
    files: Files,
    places: Places,
    pod: str,
    lowers: Sequence[Path] | None = None,
    replace: bool = False,
    mounting: Mounting | None = None,
) -> Installed:
    """Mount the pod's root as it was at the checkpoint.

    A mount that is here already and has just these layers is used as it is. Otherwise sealed layers
    that are here are used, or else extracted, while the identities of lower layers are computed.

    Args:
        files: what it is made of.
        places: the instance.
        pod: its name here.
        lowers: directories to take the lower layers from; None: those of the pod's mount, of its
            configuration, and those that *files* names. They are told by their identities.
        replace: move other state of the pod aside.
        mounting: from stack.begin_mount(), which saves time; finished here, or abandoned.

    Raises:
        InstallError: a layer is missing, or there is other state and not *replace*.
        StackError: stackfs could not do its part.
        FormatError: a layer is not the signed one.
    """
    wanted, base, known = list(files.layers[::-1]), files.base, files.known
    with ExitStack() as cleanup, ExitStack() as undo:
        if mounting is not None:
            cleanup.callback(mounting.abandon)
        discard(places, pod)
        mounted = mounted_lowers(places, pod)
        here = _State.look(places.state(pod))
        reuse = here.is_exactly(wanted)
        given = None if lowers is None else [os.path.realpath(path) for path in lowers]
        if reuse:
            undo.callback(discard, places, pod)
        if reuse and mounted is not None and stands(mounted, base, given):
            return Installed([lower.path for lower in mounted], None, undo.pop_all())
        paths = None if mounted is None else [lower.path for lower in mounted]
        if not (reuse or here.is_empty or replace):
            raise _other_state(pod, here)
        # What takes time, and changes nothing yet.
        candidates = likely_lowers(base, places, pod, paths) if given is None else given
        with identities(places, [one for one in candidates if one not in known]) as running:
            if not reuse:
                undo.callback(_remove, _staging(places, pod))
                files.make(_new_staging(places, pod))
            found = {d: known[d] if d in known else running[d].result() for d in candidates}
            chosen = match(base, found)
        # From here on everything is in place; each step is one rename or one message.
        if paths is not None and (not reuse or paths != chosen):
            stack.umount(places, pod)
            paths = None
        replaced = None if reuse else _take_place(places, pod, here, undo)
        if paths is None:
            (mounting or stack.begin_mount(places, pod)).finish(chosen)
            undo.callback(stack.umount, places, pod)
        return Installed(chosen, replaced, undo.pop_all())


def discard(places: Places, pod: str) -> None:
    """Discard what a restart that was broken off has written; after any other do nothing.

    It opens the pod's files as they were, for writing too, and that copies them up. The marker of a
    restart goes when it lets the pod go, or the pod is started otherwise: launcher.pods.create().
    """
    marker = places.restarting(pod)
    if not (marker.exists() and (places.state(pod) / "stack.json").exists()):
        return
    mounted = mounted_lowers(places, pod)
    if mounted is not None:
        stack.umount(places, pod)
    layers = _State.look(places.state(pod)).layers
    stack.rollback(places, pod, layers[0] if layers else "0")
    marker.unlink()
    if mounted is not None:
        stack.mount(places, pod, [lower.path for lower in mounted])


class _State(Struct, frozen=True):
    """What stackfs keeps for the pod here: ids of its layers, topmost first; is the upper used?"""

    layers: list[str]
    written: bool

    @classmethod
    def look(cls, state: Path) -> "_State":
        names = [name for name in _names(state / "layers") if name.isdecimal()]
        paths = [state / "layers" / name for name in sorted(names, key=int, reverse=True)]
        return cls([_layer_id(path) for path in paths], bool(_names(state / "upper")))

    def is_exactly(self, layers: list[str]) -> bool:
        return self.layers == layers and not self.written

    @property
    def is_empty(self) -> bool:
        return not self.layers and not self.written


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _layer_id(path: Path) -> str:
    try:
        return os.getxattr(path, _LAYER_ID, follow_symlinks=False).decode()
    except OSError as e:
        if e.errno != errno.ENODATA:
            raise
        return ""


def _other_state(pod: str, here: _State) -> InstallError:
    what = f"{len(here.layers)} sealed layers" if here.layers else "files that it has written"
    more = " and files written after them" if here.layers and here.written else ""
    return InstallError(
        f"pod {pod!r} has other state here: {what}{more}",
        "--replace moves that state aside and installs the archive's",
    )


def mounted_lowers(places: Places, pod: str) -> list[Lower] | None:
    """Return the lower layers of the pod's mount; None: it is not mounted."""
    try:
        return stack.status(places, pod).lower
    except stack.NotMounted:
        return None


def stands(mounted: Sequence[Lower], base: Sequence[Base], given: Sequence[str] | None) -> bool:
    """Are the lower layers of a mount those in *base*, and the *given* ones if any are? Pure.

    The daemon knows what is in the layers that it has open, whatever is at their paths now.
    """
    if given is not None and list(given) != [lower.path for lower in mounted]:
        return False
    return [lower.identity for lower in mounted] == [lower.identity for lower in base]


def likely_lowers(
    base: Sequence[Base], places: Places, pod: str, mounted: Sequence[str] | None
) -> list[str]:
    """Return the directories and images that may be lower layers, the likeliest first."""
    named = [lower.path for lower in base]
    paths = [*(mounted or []), *config.load(places, pod).root.lower, *named]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


def match(base: Sequence[Base], identities: Mapping[str, str]) -> list[str]:
    """Return the directory for each of the lower layers in *base*. Pure.

    Args:
        base: what is wanted.
        identities: what is there: identity by directory, the likeliest first.

    Raises:
        InstallError: no directory has one of the identities.
    """
    by_identity = {identity: path for path, identity in reversed(list(identities.items()))}
    for number, lower in enumerate(base, 1):
        if lower.identity not in by_identity:
            seen = "; ".join(f"{path} has {found[:16]}…" for path, found in identities.items())
            raise InstallError(
                f"lower layer {number} of {len(base)} is not here: a directory with identity "
                f"{lower.identity[:16]}…, which was {lower.path} ({seen or 'none was found'})",
                "give a copy of it with --lower DIR; `stackfs identity DIR` prints identities",
            )
    return [by_identity[lower.identity] for lower in base]


def _staging(places: Places, pod: str) -> Path:
    """Where layers are extracted to: beside the pods' states, under no pod's name."""
    return places.states() / f".{pod}.new"


def _new_staging(places: Places, pod: str) -> Path:
    """Make the directory that layers are extracted to; return the one in it for them."""
    staging = _staging(places, pod)
    _remove(staging)  # an earlier restart may have been killed
    staging.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir(mode=0o700)
    directory = staging / "layers"
    directory.mkdir(mode=0o700)
    return directory


def _extract(archive: "Archive", places: Places, directory: Path) -> None:
    """Make the archive's layers in *directory*, durably.

    Raises:
        InstallError: there are some that the archive only names.
    """
    for layer_id in archive.manifest.below:
        raise InstallError(f"layer {layer_id}, which the archive builds upon, is not here")
    for number, layer in enumerate(archive.layers, 1):
        with Unpacking(places) as unpacking:
            unpack(unpacking, directory / str(number), layer.id, archive.layer_tar(layer))
    make_durable(directory)


def unpack(unpacking: Unpacking, path: Path, layer_id: str, tar: Iterable[bytes]) -> None:
    """Make the sealed layer *path* of the pieces of its *tar*.

    Raises:
        StackError: the tar is refused. Nothing is left then.
    """
    with unpacking.into(path) as stream:
        for piece in tar:
            stream.write(piece)
    os.setxattr(path, _LAYER_ID, layer_id.encode())


def make_durable(directory: Path) -> None:
    """Write out the file system that *directory* is on."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        abi.syncfs(fd)
    finally:
        os.close(fd)


def _take_place(places: Places, pod: str, here: _State, undo: ExitStack) -> Path | None:
    """Make the staged layers the pod's; return where the former state is now, if there was any."""
    state, aside = places.state(pod), None
    if not here.is_empty:
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = state.with_name(f"{pod}.replaced-{now}")
        state.rename(aside)
        undo.callback(aside.rename, state)
    state.mkdir(mode=0o700, exist_ok=True)
    undo.callback(_forget, state, remove=aside is not None)
    _forget(state, remove=False)
    (_staging(places, pod) / "layers").rename(state / "layers")
    _staging(places, pod).rmdir()
    return aside


def _forget(state: Path, *, remove: bool) -> None:
    """Delete what stackfs keeps in *state*, or all of it."""
    for path in [state] if remove else [state / name for name in _STACK_FILES]:
        _remove(path)


def _remove(path: Path) -> None:
    """Delete what is at *path*, if anything, however deep: shutil.rmtree() has a limit there.

    Raises:
        OSError: something is left.
    """
    command = ["rm", "-rf", "--one-file-system", "--", os.fspath(path)]
    if os.path.lexists(path) and subprocess.run(command, check=False).returncode:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), os.fspath(path))
