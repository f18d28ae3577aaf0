"""`ckpt whole`: an archive that needs no other, made of one that builds upon an earlier one."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt.archive.frames import FRAME_CONTENT
from ckpt.archive.write import ArchiveWriter, Summary
from ckpt.layerview import Pieces
from ckpt.model import PAGE_SIZE
from ckpt.progress import Progress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    from ckpt.archive.read import Archive

_STEP = FRAME_CONTENT // PAGE_SIZE


def write_whole(
    archive: "Archive",
    path: Path,
    key: "Ed25519PrivateKey",
    recipients: "Sequence[X25519PublicKey]",
    progress: Progress,
) -> Summary:
    """Write the same checkpoint, of the same time and machine, as a whole archive.

    Args:
        archive: that builds upon an earlier one.
        path: the archive to write.
        key: signs it: its owner now vouches for what is in it.
        recipients: whom it is encrypted to; none: it is not.
        progress: is told.

    Raises:
        ValueError: *archive* is whole.
        ArchiveError: it is damaged; there is no new one.
        OSError: it cannot be written.
    """
    if archive.earlier is None:
        raise ValueError(f"{archive.path} is whole already")
    count, manifest = archive.pages.count, archive.manifest
    with ArchiveWriter(path, key, progress=progress, recipients=recipients) as writer:
        with progress.step("memory", count * PAGE_SIZE):
            for first in range(0, count, _STEP):
                writer.pages.add(archive.pages.read(first, min(_STEP, count - first)))
        with progress.step("file system", sum(layer.length for layer in archive.layers)):
            for layer in archive.layers:
                tar = io.BufferedReader(Pieces(archive.layer_tar(layer)), FRAME_CONTENT)
                writer.add_layer(layer.id, tar)
        writer.set_model(archive.model())
        writer.set_config(archive.config())
        writer.set_base(manifest.base)
        writer.set_origin(manifest.host, manifest.created)
        return writer.commit()
