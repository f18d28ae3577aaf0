"""What belongs together in an archive: members, manifests, features. Pure.

All of it raises FormatError where something does not.
"""

import re
from typing import Final

from ckpt.archive import schema
from ckpt.archive.container import Member
from ckpt.archive.errors import FormatError
from ckpt.archive.schema import Descriptor

ID: Final = re.compile(r"[0-9a-f]{32}")
"""Of a sealed layer."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def check_members(members: list[Member], image: schema.ImageManifest) -> None:
    """The tar holds the blobs of the manifest, in its order, each once, and no others."""
    sizes = {blob_name(d.digest): d.size for d in [*image.layers, image.config]}
    if list(sizes.items()) != [(member.name, member.size) for member in members[1:-3]]:
        raise FormatError("the members are not the blobs of the manifest in their order")


def check_features(manifest: schema.Manifest) -> None:
    """What the manifest has is what it requires, and the other way round."""
    if (manifest.encryption is not None) != (schema.ENCRYPTED in manifest.requires):
        raise FormatError(
            f"encryption, and feature {schema.ENCRYPTED!r} not required, or no encryption"
        )
    if bool(manifest.below) != (schema.LAYERS_BELOW in manifest.requires):
        raise FormatError(f"layers below, and feature {schema.LAYERS_BELOW!r} not required")
    if len(manifest.below) > schema.MAX_LAYERS or not all(map(ID.fullmatch, manifest.below)):
        raise FormatError("the layers below have no proper ids, or are too many")
    if (manifest.earlier is not None) != (schema.EARLIER in manifest.requires):
        raise FormatError(
            f"an earlier archive, and feature {schema.EARLIER!r} not required, or no such archive"
        )
    if manifest.earlier:
        _check_earlier(manifest.earlier, manifest.below)


def _check_earlier(earlier: schema.Earlier, below: list[str]) -> None:
    if below:
        raise FormatError("layers below, and an earlier archive that has layers")
    if not _DIGEST.fullmatch(earlier.manifest):
        raise FormatError(f"an earlier archive with the digest {earlier.manifest!r}")
    if not (0 <= earlier.pages <= schema.MAX_PAGES and 0 <= earlier.layers <= schema.MAX_LAYERS):
        raise FormatError(
            f"{earlier.pages} pages and {earlier.layers} layers in an earlier archive"
        )


def by_type(image: schema.ImageManifest, suffix: str) -> dict[str, Descriptor]:
    """Return the blobs that every archive has exactly one of, by media type without *suffix*."""
    layer_type = schema.LAYER_TYPE + suffix
    types = [blob.media_type for blob in image.layers if blob.media_type != layer_type]
    if sorted(types) != sorted(kind + suffix for kind in schema.SINGLE_TYPES):
        raise FormatError(f"blobs of the types {', '.join(types)}")
    if len(image.layers) - len(types) > schema.MAX_LAYERS:
        raise FormatError(f"more than {schema.MAX_LAYERS} layers")
    return {blob.media_type.removesuffix(suffix): blob for blob in image.layers}


def blob_name(digest: str) -> str:
    """Return the name of the member with that digest."""
    return "blobs/" + digest.replace(":", "/", 1)
