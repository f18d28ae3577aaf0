"""What of an archive's file is to be believed: its members, and the manifests that are signed.

Nothing is parsed before the signature over it holds, and every blob is compared with the digest
that a signed manifest gives for it. What was hashed is what is returned.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckpt.archive import container, dsse, frames, layout, parse, schema
from ckpt.archive.container import Member, read_exactly
from ckpt.archive.errors import Damaged, FormatError, UnsupportedFeature, UnsupportedVersion
from ckpt.archive.schema import Descriptor

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_ENVELOPE: Final = schema.MAX_SMALL * 4 // 3 + dsse.ENVELOPE_OVERHEAD


class Members:
    """The members of the tar that an archive is.

    Attributes:
        all: in their order.
        fd: of the file. Not owned.
    """

    def __init__(self, fd: int) -> None:
        """Find them in the file *fd*.

        Raises:
            FormatError: it is no such tar.
        """
        self.fd = fd
        self.all = container.members(fd)
        self._by_name = {member.name: member for member in self.all}

    def blob(self, digest: str) -> Member:
        """Return the member that is the blob of this digest; layout.check_members() was called."""
        return self._by_name[layout.blob_name(digest)]

    def read(self, member: Member, limit: int) -> bytes:
        """Return what is in *member*.

        Raises:
            FormatError: that is more than *limit* bytes.
        """
        if member.size > limit:
            raise FormatError(f"{member.name}: {member.size} bytes where {limit} are allowed")
        return read_exactly(self.fd, member.offset, member.size)

    def whole(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return a whole blob, which the verified manifest names.

        Raises:
            FormatError: it is not there, or larger than *limit* bytes, or not the signed one.
        """
        member = self._by_name.get(layout.blob_name(descriptor.digest))
        if member is None or member.size != descriptor.size:
            raise FormatError(f"{descriptor.digest}: missing, or not of {descriptor.size} bytes")
        data = self.read(member, limit)
        if schema.digest(data) != descriptor.digest:
            raise Damaged(f"{descriptor.digest}: the content does not have this digest")
        return data

    def check(self, descriptor: Descriptor) -> None:
        """Check a blob without holding it.

        Raises:
            Damaged: it does not have its digest.
        """
        member, whole = self.blob(descriptor.digest), hashlib.sha256()
        for start in range(0, member.size, frames.FRAME_CONTENT):
            size = min(frames.FRAME_CONTENT, member.size - start)
            whole.update(read_exactly(self.fd, member.offset + start, size))
        if descriptor.digest != f"sha256:{whole.hexdigest()}":
            raise Damaged(f"{descriptor.digest}: the content does not have this digest")


class Signed(Struct, frozen=True):
    """The image manifest, whose signature holds.

    Attributes:
        image: what it says.
        digest: of it.
        signer: fingerprint of the key that signed.
    """

    image: schema.ImageManifest
    digest: str
    signer: str


def verify(members: Members, trusted_keys: "Mapping[str, Ed25519PublicKey]") -> Signed:
    """Check what is around the signed manifest, and its signature; only then parse it.

    Raises:
        ArchiveError: something is wrong; the class says what.
    """
    there = members.all
    if len(there) < 4 or (there[0].name, there[-1].name) != ("oci-layout", "index.json"):
        raise FormatError("not an archive of this format: members are missing")
    if members.read(there[0], len(schema.OCI_LAYOUT)) != schema.OCI_LAYOUT:
        raise FormatError("oci-layout is not that of this format")
    manifest = members.read(there[-3], schema.MAX_SMALL)
    envelope = members.read(there[-2], MAX_ENVELOPE)
    signer = dsse.verify(manifest, envelope, trusted_keys)
    names = [layout.blob_name(schema.digest(data)) for data in (manifest, envelope)]
    index = schema.index_json(manifest, envelope)
    if names != [member.name for member in there[-3:-1]] or index != members.read(
        there[-1], len(index)
    ):
        raise FormatError("index.json does not belong to the manifest")
    image = parse.decode_json(manifest, schema.ImageManifest, "image manifest")
    return Signed(image, schema.digest(manifest), signer)


def pod_manifest(members: Members, image: schema.ImageManifest) -> schema.Manifest:
    """Return the pod manifest, which the image manifest names.

    Raises:
        UnsupportedVersion, UnsupportedFeature: it is of another time.
        FormatError: it is not the signed one, or makes no sense.
    """
    if image.artifact_type != schema.ARTIFACT_TYPE:
        raise UnsupportedVersion(f"artifact type {image.artifact_type!r}")
    data = members.whole(image.config, schema.MAX_SMALL)
    version = parse.decode_json(data, schema.Version, "pod manifest")
    if version.format not in schema.READABLE_VERSIONS:
        raise UnsupportedVersion(
            f"format version {version.format}; this version reads "
            f"{', '.join(map(str, sorted(schema.READABLE_VERSIONS)))}"
        )
    for feature in version.requires:
        if feature not in schema.FEATURES:
            raise UnsupportedFeature(f"needs feature {feature!r}, which is not known here")
    return parse.decode_json(data, schema.Manifest, "pod manifest")
