"""Archives in an OCI registry, through skopeo: it knows registries, users and certificates.

An archive is an OCI image layout, so the registry gets its own manifest and blobs, and keeps each
blob once, however many archives of a pod have it:

    HOST/NAME:TAG                 the image manifest, with the archive's artifact type
    HOST/NAME:sha256-HEX.sig      an artifact whose subject is that manifest, HEX its digest, and
                                  whose one layer is the envelope with the signature

What is pulled is made into the same file again, byte for byte. Of a registry's answers only what
skopeo needs is understood before the signature over the manifest was verified: sizes that are
asked for, limits that it cannot go beyond.

Source: OCI image specification v1.1, manifest.md; distribution specification v1.1, "Referrers".
"""

import hashlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from ckpt.archive import container, dsse, layout, schema, signed
from ckpt.archive.blobs import TarWriter
from ckpt.archive.errors import ArchiveError, FormatError, NoEarlier
from ckpt.archive.newfile import NewFile
from ckpt.archive.read import open_archive
from ckpt.archive.schema import Descriptor
from ckpt.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_REFERENCE: Final = re.compile(
    r"(?P<name>[A-Za-z0-9.-]+(?::[0-9]+)?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?"
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FATAL: Final = re.compile(r'level=fatal msg="(.*)"$')
_EMPTY: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_SLACK: Final = 1 << 16
_PIECE: Final = 1 << 22
_INSPECT_S: Final = 120


class RegistryError(Exception):
    """A registry has not done what it was asked; the text says why."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Reference(Struct, frozen=True):
    """Where an archive is in a registry.

    Attributes:
        name: HOST/NAME.
        tag: without it, by its digest only.
        digest: `@sha256:…`, or "".
    """

    name: str
    tag: str | None = None
    digest: str = ""

    @property
    def text(self) -> str:
        """As people and programs write it; a digest takes the tag's place."""
        return self.name + (self.digest or f":{self.tag}")

    def signature(self, manifest: bytes) -> str:
        """Return where the signature over *manifest* is."""
        return f"{self.name}:sha256-{hashlib.sha256(manifest).hexdigest()}.sig"


class _Signature(Struct, frozen=True, rename="camel"):
    """The manifest of a signature."""

    config: Descriptor
    layers: list[Descriptor]
    subject: Descriptor
    artifact_type: str = schema.ENVELOPE_TYPE
    media_type: str = schema.IMAGE_MANIFEST_TYPE
    schema_version: int = 2


def reference(text: str) -> Reference:
    """Return what *text* refers to. Pure.

    Raises:
        ValueError: it is no HOST[:PORT]/NAME with a tag or a digest.
    """
    found = _REFERENCE.fullmatch(text)
    if found is None or not (found["tag"] or found["digest"]):
        raise ValueError(f"{text!r} is no archive in a registry: use HOST[:PORT]/NAME:TAG")
    return Reference(found["name"], found["tag"], found["digest"] or "")


def push(file: Path, to: Reference, trusted: "Mapping[str, Ed25519PublicKey]") -> str:
    """Copy the archive *file* to a registry; the signature first, so that none is without.

    Args:
        file: the archive.
        to: with a tag.
        trusted: keys by fingerprint.

    Returns:
        The digest of its manifest.

    Raises:
        ArchiveError: no trusted key has signed it, or it needs another one.
        RegistryError: it is not there.
    """
    with open_archive(file, trusted, identities=None) as archive:
        if archive.earlier:
            hint = "push a whole one: ckpt whole FILE NEWFILE"
            raise NoEarlier(f"{file} builds upon another archive, which would not be there", hint)
        manifest, envelope = _signed(file)
    with tempfile.TemporaryDirectory(prefix="autopod-push-") as made:
        signature = Path(made) / "signature"
        _write_signature(signature, manifest, envelope)
        _copy(f"oci:{signature}:sig", f"docker://{to.signature(manifest)}")
        link = Path(made) / "archive"  # whose path has no colon
        link.symlink_to(file.absolute())
        _copy(f"oci-archive:{link}:pod", f"docker://{to.text}")
    return schema.digest(manifest)


def _signed(file: Path) -> tuple[bytes, bytes]:
    """Return the image manifest and the envelope of an archive."""
    with file.open("rb") as content:
        members = container.members(content.fileno())
        manifest, envelope = (
            container.read_exactly(content.fileno(), one.offset, one.size) for one in members[-3:-1]
        )
    return manifest, envelope


def _write_signature(to: Path, manifest: bytes, envelope: bytes) -> None:
    """Write an OCI image layout with nothing but a signature."""

    def blob(media_type: str, data: bytes) -> Descriptor:
        made = Descriptor(media_type, schema.digest(data), len(data))
        (to / layout.blob_name(made.digest)).write_bytes(data)
        return made

    (to / "blobs/sha256").mkdir(parents=True)
    signature = _Signature(
        config=blob(_EMPTY_TYPE, _EMPTY),
        layers=[blob(schema.ENVELOPE_TYPE, envelope)],
        subject=Descriptor(schema.IMAGE_MANIFEST_TYPE, schema.digest(manifest), len(manifest)),
    )
    made = blob(schema.IMAGE_MANIFEST_TYPE, schema.canonical_json(signature))
    named = {"org.opencontainers.image.ref.name": "sig"}
    index = schema.ImageIndex([msgspec.structs.replace(made, annotations=named)])
    (to / "index.json").write_bytes(schema.canonical_json(index))
    (to / "oci-layout").write_bytes(schema.OCI_LAYOUT)


def pull(
    source: Reference,
    file: Path,
    trusted: "Mapping[str, Ed25519PublicKey]",
    progress: Progress,
) -> None:
    """Make an archive in a registry the file *file*, which is there whole and verified, or not.

    Raises:
        ArchiveError: it is refused, as where it is opened from a disk.
        RegistryError: it was not got.
        OSError: the file cannot be written.
    """
    manifest = _inspect(source.text)
    if source.digest and source.digest != f"@{schema.digest(manifest)}":
        raise RegistryError(f"{source.text}: the registry has sent something else")
    where = source.signature(manifest)
    with tempfile.TemporaryDirectory(prefix=".autopod-pull-", dir=file.parent) as made:
        envelope = _envelope(where, Path(made) / "signature")
        try:
            dsse.verify(manifest, envelope, trusted)
        except ArchiveError as e:
            e.args = (f"{source.text}: {e}",)
            raise
        blobs = _blobs(manifest)
        _check_room(file.parent, blobs)
        by_digest = f"docker://{source.name}@{schema.digest(manifest)}"
        largest = max([len(manifest), *(one.size for one in blobs)])
        _copy(by_digest, f"oci:{made}/archive:pod", limit=largest + _SLACK)
        new = NewFile(file)
        try:
            _assemble(new.fd, file, Path(made) / "archive", blobs, (manifest, envelope))
            _verify(new.fd, source.text, trusted, progress)
            new.commit()
        finally:
            new.discard()


def _envelope(where: str, to: Path) -> bytes:
    """Return the envelope with the signature that is at *where*."""
    try:
        found = msgspec.json.decode(_inspect(where), type=_Signature)
    except msgspec.DecodeError as e:
        raise FormatError(f"{where}: {e}") from e
    [layer] = found.layers if len(found.layers) == 1 else [None]
    if layer is None or layer.size > signed.MAX_ENVELOPE or not _DIGEST.fullmatch(layer.digest):
        raise FormatError(f"{where}: it is no signature of an archive")
    _copy(f"docker://{where}", f"oci:{to}:sig", limit=signed.MAX_ENVELOPE + _SLACK)
    with (to / layout.blob_name(layer.digest)).open("rb") as content:
        return content.read(signed.MAX_ENVELOPE)


def _blobs(manifest: bytes) -> list[Descriptor]:
    """Return the blobs of a manifest that is verified, in the order in which they stand."""
    try:
        image = msgspec.json.decode(manifest, type=schema.ImageManifest)
    except msgspec.DecodeError as e:
        raise FormatError(f"image manifest: {e}") from e
    found = {one.digest: one for one in [*image.layers, image.config]}
    if len(found) > container.MAX_MEMBERS or not all(map(_DIGEST.fullmatch, found)):
        raise FormatError("image manifest: too many blobs, or digests that are none")
    return list(found.values())


def _check_room(directory: Path, blobs: Sequence[Descriptor]) -> None:
    needed = 2 * sum(one.size for one in blobs)  # the blobs, and the archive made of them
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise RegistryError(f"{directory} has {free} bytes free, {needed} are needed")


def _assemble(
    fd: int, file: Path, got: Path, blobs: Sequence[Descriptor], signed: tuple[bytes, bytes]
) -> None:
    """Write the archive that its parts come from."""
    tar = TarWriter(fd, file)
    tar.add_member("oci-layout", schema.OCI_LAYOUT)
    for one in blobs:
        with (got / layout.blob_name(one.digest)).open("rb") as content:
            while piece := content.read(_PIECE):
                tar.append(piece)
        tar.end_blob(one.media_type)
    manifest, envelope = signed
    tar.add_blob(schema.IMAGE_MANIFEST_TYPE, manifest)
    tar.add_blob(schema.ENVELOPE_TYPE, envelope)
    tar.add_member("index.json", schema.index_json(manifest, envelope))
    tar.end()


def _verify(
    fd: int, where: str, trusted: "Mapping[str, Ed25519PublicKey]", progress: Progress
) -> None:
    nameless = Path(f"/proc/self/fd/{fd}")
    try:
        with open_archive(nameless, trusted, identities=None) as archive:
            archive.verify(progress)
    except ArchiveError as e:
        e.args = (str(e).replace(f"{nameless}", where),)
        raise


def _inspect(where: str) -> bytes:
    """Return the manifest at *where*, which nobody has verified."""
    argv = ["skopeo", "inspect", "--raw", f"docker://{where}"]
    with tempfile.TemporaryFile() as said:
        _run(argv, said.fileno(), limit=schema.MAX_SMALL, seconds=_INSPECT_S)
        said.seek(0)
        return said.read(schema.MAX_SMALL)


def _copy(source: str, to: str, limit: int | None = None) -> None:
    """Copy with the same digests; no file that is written is longer than *limit* bytes."""
    shown = 2 if sys.stderr.isatty() else subprocess.DEVNULL
    _run(["skopeo", "copy", "--preserve-digests", source, to], shown, limit=limit)


def _run(argv: list[str], stdout: int, *, limit: int | None, seconds: float | None = None) -> None:
    def prepare() -> None:  # of a process that has one thread
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
            preexec_fn=prepare,
        )
    except FileNotFoundError as e:
        raise RegistryError("skopeo is not installed", "apt-get install skopeo") from e
    except subprocess.TimeoutExpired as e:
        raise RegistryError(f"{argv[-1]}: no answer within {seconds} seconds") from e
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        fatal = _FATAL.search(lines[-1])
        raise RegistryError(f"skopeo: {fatal[1] if fatal else lines[-1]}")
