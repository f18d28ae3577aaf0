"""The earlier archive that an incremental one builds upon: which can be one, and where it is.

It is known by the digest of its image manifest, which is what its signature covers; so it can have
any name. It is looked for beside the archive that builds upon it, or somebody says where it is.
Where there are several, of which some may be damaged, it is the first that is good.
It is whole: who has an incremental archive needs one more file, never a chain of them.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.archive import container, schema
from ckpt.archive.container import read_exactly
from ckpt.archive.errors import ArchiveError, FormatError, NoEarlier
from ckpt.progress import Silent

if TYPE_CHECKING:
    from ckpt.archive.read import Archive


def find(path: Path, digest: str, given: Path | None) -> list[Path]:
    """Return the archive that *path* builds upon, or several: nothing of them is verified yet.

    Args:
        path: the incremental archive.
        digest: of the image manifest of the one that is wanted.
        given: where it is; None: beside *path*, under any name that ends with .pod.

    Raises:
        NoEarlier: it is not there.
        FormatError, OSError: *given* is no archive, or cannot be read.
    """
    if given is not None:
        if _manifest_digest(given) != digest:
            raise NoEarlier(f"{given} is not the archive that it builds upon, {digest}")
        return [given]
    found: dict[tuple[int, int], Path] = {}
    for candidate in sorted(path.parent.glob("*.pod")):
        with suppress(ArchiveError, OSError):  # whatever it is, it is not the one
            if _manifest_digest(candidate) == digest:
                status = candidate.stat()
                found.setdefault((status.st_dev, status.st_ino), candidate)
    if not found:
        raise NoEarlier(f"the archive that it builds upon is not beside it: {digest}")
    return list(found.values())


def open_good(found: list[Path], opened: "Callable[[Path], Archive]") -> "Archive":
    """Open the first of *found* that is good. One alone need not be: its reader sees what is not.

    Raises:
        ArchiveError, OSError: none is; why the first is not.
    """
    if len(found) == 1:
        return opened(found[0])
    failures: list[ArchiveError | OSError] = []
    for path in found:
        try:
            with ExitStack() as undo:
                archive = undo.enter_context(opened(path))
                archive.verify(Silent())
                undo.pop_all()
                return archive
        except (ArchiveError, OSError) as e:
            failures.append(e)
    raise failures[0]


def check(archive: "Archive", manifest: schema.Manifest, wanted: schema.Earlier) -> None:
    """Is *archive* what an archive with the pod manifest *manifest* builds upon?

    Its signature holds; the caller has seen to it that it builds upon nothing itself.

    Raises:
        FormatError: it cannot be.
        NoEarlier: it has changed since it was found.
    """
    if archive.digest != wanted.manifest:
        raise NoEarlier(f"the archive that it builds upon is not there any more: {wanted.manifest}")
    if archive.manifest.pod != manifest.pod:
        raise FormatError(f"it builds upon an archive of pod {archive.manifest.pod!r}")
    if archive.manifest.below:
        raise FormatError("it builds upon an archive that is not whole")
    if (archive.manifest.encryption is None) != (manifest.encryption is None):
        raise FormatError("only one of it and the archive that it builds upon is encrypted")
    if archive.is_locked:
        return
    pages, layers = archive.pages.unique, len(archive.layers)
    if pages != wanted.pages or layers < wanted.layers:
        raise FormatError(
            f"it builds upon an archive of {wanted.pages} pages and {wanted.layers} layers, "
            f"which has {pages} and {layers}"
        )


def check_usable(archive: "Archive", pod: str, *, encrypted: bool) -> None:
    """Can a new archive of *pod*, *encrypted* or not, build upon *archive*?

    Raises:
        NoEarlier: it cannot.
    """
    manifest, why, hint = archive.manifest, "", "a checkpoint without --since is whole"
    if manifest.earlier or manifest.below:
        why = "it is not whole itself"
        hint = "give the archive that it was taken since, or make it whole: ckpt whole FILE NEW"
    elif manifest.pod != pod:
        why = f"it is one of pod {manifest.pod!r}"
    elif (manifest.encryption is not None) != encrypted:
        why = "only one of it and the new one is encrypted"
    if why:
        raise NoEarlier(f"{archive.path}: no archive of pod {pod!r} can build upon it: {why}", hint)


def _manifest_digest(path: Path) -> str:
    """Return the digest of what stands where an archive has its image manifest."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        members = container.members(fd)
        if len(members) < 4 or members[-3].size > schema.MAX_SMALL:
            raise FormatError(f"{path}: not an archive of this format")
        return schema.digest(read_exactly(fd, members[-3].offset, members[-3].size))
    except FormatError as e:
        raise FormatError(f"{path}: {e}") from None
    finally:
        os.close(fd)
