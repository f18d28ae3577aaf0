"""Reading an archive: the signature first, then only what is asked for, each piece checked.

Order (docs/format.md, "Verification"): the tar around the blobs is compared with the only one that
there can be; the signature is verified over the bytes of the image manifest; then these bytes are
parsed. A blob, or a frame of a framed blob, is compared with its digest in memory and used from
there, so that a file that changes while it is read is refused, too.

Not for several threads at once. A forked child can go on reading.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from ckpt import states
from ckpt.archive import crypt, earlier, frames, layout, parse, schema, signed
from ckpt.archive.errors import (
    Damaged,
    FormatError,
    NotARecipient,
    UnsupportedVersion,
)
from ckpt.archive.frameread import FrameReader, PageReader, Workers
from ckpt.archive.schema import Descriptor
from ckpt.archive.seen import Seen
from ckpt.model import MODEL_VERSION, PAGE_SIZE, Pod
from ckpt.progress import Progress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

_LIMITS: Final = {
    schema.HASHES_TYPE: schema.MAX_PAGES * hashlib.sha256().digest_size,
    schema.POD_CONFIG_TYPE: schema.MAX_SMALL,
    schema.INDEX_TYPE: schema.MAX_INDEX,
}


class Layer(msgspec.Struct, frozen=True):
    """A sealed file-system layer in an archive.

    Attributes:
        id: the id that it got when it was sealed.
        digest: of its blob.
        size: bytes of its blob.
        length: bytes of its tar.
    """

    id: str
    digest: str
    size: int
    length: int


def open_archive(
    path: Path,
    trusted_keys: "Mapping[str, Ed25519PublicKey]",
    identities: "Iterable[X25519PrivateKey] | None" = (),
    since: Path | None = None,
) -> "Archive":
    """Open an archive and verify its signature; the rest is checked when it is read.

    One that builds upon an earlier archive opens that, too, in the same way.

    Args:
        path: the file.
        trusted_keys: by fingerprint, as keys.load_trusted() returns them.
        identities: private keys that it may be encrypted to; None: it is only to be verified.
        since: the earlier archive, if it builds upon one; None: look beside it.

    Returns:
        The archive, a context manager.

    Raises:
        OSError: the file cannot be opened or read.
        ArchiveError: it is refused; the class says why.
    """
    identities = identities if identities is None else list(identities)
    with ExitStack() as stack:

        def open_earlier(digest: str) -> Archive:
            found = earlier.find(path, digest, since)
            good = earlier.open_good(found, lambda p: _opened(p, trusted_keys, identities, _refuse))
            return stack.enter_context(good)

        archive = _opened(path, trusted_keys, identities, open_earlier)
        stack.pop_all()
        return archive


def _opened(
    path: Path,
    trusted_keys: "Mapping[str, Ed25519PublicKey]",
    identities: "list[X25519PrivateKey] | None",
    open_earlier: "Callable[[str], Archive]",
) -> "Archive":
    with ExitStack() as stack:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        stack.callback(os.close, fd)
        archive = Archive(fd, path, trusted_keys, identities, open_earlier)
        stack.pop_all()
        return archive


def _refuse(_digest: str) -> "Archive":
    raise FormatError("another archive builds upon it, and so it may not itself")


class Archive:
    """An archive whose signature holds.

    Attributes:
        path: the file.
        digest: of the image manifest.
        manifest: the pod manifest.
        signer: fingerprint of the key that signed.
        size: bytes of the file.
        earlier: the archive that it builds upon, if it does.
        is_locked: is it encrypted, and opened to be verified only? Then nothing else is here.
        layers: sealed file-system layers, bottommost first; those of the earlier archive, too.
        pages: the page sequence.
    """

    def __init__(
        self,
        fd: int,
        path: Path,
        trusted_keys: "Mapping[str, Ed25519PublicKey]",
        identities: "Iterable[X25519PrivateKey] | None",
        open_earlier: "Callable[[str], Archive]",
    ) -> None:
        """Take *fd* and what *open_earlier* opens, unless this raises; see open_archive()."""
        self._fd, self.path, self._workers = fd, path, Workers()
        self.earlier: Archive | None = None
        with parse.naming(path):
            self._open(trusted_keys, identities, open_earlier)

    def _open(
        self,
        trusted_keys: "Mapping[str, Ed25519PublicKey]",
        identities: "Iterable[X25519PrivateKey] | None",
        open_earlier: "Callable[[str], Archive]",
    ) -> None:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("not a regular file")
        self.size = status.st_size
        self._members = signed.Members(self._fd)
        found = signed.verify(self._members, trusted_keys)
        image, self.digest, self.signer = found.image, found.digest, found.signer
        self.manifest = signed.pod_manifest(self._members, image)
        layout.check_members(self._members.all, image)
        layout.check_features(self.manifest)
        if wanted := self.manifest.earlier:
            self.earlier = open_earlier(wanted.manifest)
            earlier.check(self.earlier, self.manifest, wanted)
        self._ciphers = self._decrypt(image, identities)
        self._image = image
        if not self.is_locked:
            self._read_index(image)

    def _read_index(self, image: schema.ImageManifest) -> None:
        self._blobs = layout.by_type(image, self._suffix)
        index = parse.decode(self._small(schema.INDEX_TYPE), schema.Index, "index blob")
        self._framed = index.frames
        layer_type = schema.LAYER_TYPE + self._suffix
        own = [self._layer(d) for d in image.layers if d.media_type == layer_type]
        self.layers = [*self._shared(), *own]
        if len(self.layers) > schema.MAX_LAYERS:
            raise FormatError(f"more than {schema.MAX_LAYERS} layers")
        self._model = self._frames(self._blobs[schema.MODEL_TYPE].digest, "process model")
        if self._framed[self._blobs[schema.MODEL_TYPE].digest].length > schema.MAX_MODEL:
            raise FormatError("the process model is too large")
        self.pages = self._pages(index)
        self._members.check(self._blobs[schema.HASHES_TYPE])  # a restart has no other use for it

    def _decrypt(
        self, image: schema.ImageManifest, identities: "Iterable[X25519PrivateKey] | None"
    ) -> dict[str, crypt.BlobCipher]:
        """Return the ciphers of the blobs by digest, if it is encrypted and not only verified."""
        encryption, self.is_locked, self._suffix = self.manifest.encryption, False, ""
        if encryption is None:
            return {}
        self._suffix = schema.ENCRYPTED_SUFFIX
        if identities is None:
            self.is_locked = True
            return {}
        archive = crypt.decrypt(encryption, identities, self.signer)
        if archive is None:
            raise NotARecipient("encrypted, and no key that is here is a recipient's")
        places = reversed(list(enumerate(image.layers)))  # each at its first mention
        return {blob.digest: archive.blob(place) for place, blob in places}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and that of the earlier archive."""
        self._workers.close()
        os.close(self._fd)
        if self.earlier:
            self.earlier.close()

    def descriptors(self) -> list[int]:
        """Return the descriptors of the file and that of the earlier archive."""
        return [self._fd, *(self.earlier.descriptors() if self.earlier else [])]

    def model(self) -> Pod:
        """Return the process model.

        Raises:
            FormatError: it is not the signed one, or not one of this version.
        """
        with parse.naming(self.path):
            encoded = b"".join(self._model)
            version = parse.decode(encoded, parse.ModelVersion, "process model").version
            if version != MODEL_VERSION:
                raise UnsupportedVersion(f"process model of version {version}, not {MODEL_VERSION}")
            return states.check(parse.decode(encoded, Pod, "process model"))

    def config(self) -> bytes:
        """Return the pod's configuration file, as it was at the checkpoint."""
        with parse.naming(self.path):
            return self._small(schema.POD_CONFIG_TYPE)

    def page_hashes(self) -> bytes:
        """Return the SHA-256 digests of the unique pages, those of the earlier archive first."""
        with parse.naming(self.path):
            hashes = self._small(schema.HASHES_TYPE)
        return self.earlier.page_hashes() + hashes if self.earlier else hashes

    def check_pages(self, progress: Progress, seen: Seen | None = None) -> None:
        """Compare all that `pages` can read with what was signed; nothing is decompressed.

        Args:
            progress: is told.
            seen: what was hashed of them as they came, if the archive builds upon no other.

        Raises:
            Damaged: it is not that.
        """
        if seen is None or self.earlier:
            self.pages.check(progress)
            return
        blob = self._blobs[schema.PAGES_TYPE]
        member = self._members.blob(blob.digest)
        if seen.digest(self._fd, member.offset, member.size) != blob.digest:
            raise Damaged(f"{self.path}: the pages do not have their digest")

    def layer_tar(self, layer: Layer) -> Iterator[bytes]:
        """Yield the OCI layer tar of *layer* in pieces."""
        if self.earlier and layer in self._shared():
            return self.earlier.layer_tar(layer)
        return iter(self._frames(layer.digest, f"layer {layer.id}"))

    def verify(self, progress: Progress, good: Collection[Path] = ()) -> None:
        """Check every byte that opening has not checked; of the earlier archive, too.

        Args:
            progress: is told.
            good: earlier archives that were verified already.

        Raises:
            FormatError: something is not what was signed.
        """
        if self.earlier and self.earlier.path not in good:
            with parse.naming(self.path):
                self.earlier.verify(progress)
        with progress.step("verify", self.size), parse.naming(self.path):
            if self.is_locked:
                for blob in self._image.layers:
                    self._members.check(blob)
                    progress.advance(blob.size)
                return
            self._verify_pages(progress)
            own = self.layers[len(self._shared()) :]
            framed = [(layer.digest, f"layer {layer.id}") for layer in own]
            framed.append((self._blobs[schema.MODEL_TYPE].digest, "process model"))
            for digest, name in framed:
                for _ in self._verify_frames(digest, name, progress):
                    pass
            self.model()
            self.config()

    def _shared(self) -> list[Layer]:
        """Return the layers that the earlier archive has."""
        wanted = self.manifest.earlier
        return self.earlier.layers[: wanted.layers] if self.earlier and wanted else []

    def _layer(self, descriptor: Descriptor) -> Layer:
        layer_id = descriptor.annotations.get(schema.LAYER_ID, "")
        if not layout.ID.fullmatch(layer_id):
            raise FormatError(f"a layer with the id {layer_id!r}")
        self._frames(descriptor.digest, f"layer {layer_id}")  # its table is checked here
        length = self._framed[descriptor.digest].length
        return Layer(layer_id, descriptor.digest, descriptor.size, length)

    def _pages(self, index: schema.Index) -> PageReader:
        pages, hashes = self._blobs[schema.PAGES_TYPE], self._blobs[schema.HASHES_TYPE]
        reader = self._frames(pages.digest, "pages")
        unique, rest = divmod(self._framed[pages.digest].length, PAGE_SIZE)
        size = unique * hashlib.sha256().digest_size
        if rest or hashes.size != (crypt.sealed_size(size) if self._suffix else size):
            raise FormatError("pages and page hashes do not agree")
        below = self.earlier.pages if self.earlier else None
        return PageReader(reader, index.page_runs, unique, below)

    def _frames(self, digest: str, name: str) -> FrameReader:
        framed, member = self._framed.get(digest), self._members.blob(digest)
        if framed is None:
            raise FormatError(f"{name}: not in the index")
        cut = frames.table(framed.length, member.size, framed.table)
        where, cipher = f"{self.path}: {name}", self._ciphers.get(digest)
        return FrameReader(self._fd, member.offset, cut, where, self._workers, cipher)

    def _verify_pages(self, progress: Progress) -> None:
        hashes = self._small(schema.HASHES_TYPE)
        digest = self._blobs[schema.PAGES_TYPE].digest
        page = 0
        for content in self._verify_frames(digest, "pages", progress):
            for start in range(0, len(content), PAGE_SIZE):
                sha256 = hashlib.sha256(content[start : start + PAGE_SIZE]).digest()
                if sha256 != hashes[32 * page : 32 * page + 32]:
                    raise FormatError(f"unique page {page} does not have the hash given for it")
                page += 1

    def _verify_frames(self, digest: str, name: str, progress: Progress) -> Iterator[memoryview]:
        """Yield the contents of a framed blob; check it as a whole at its end."""
        whole = hashlib.sha256()
        for data, content in self._frames(digest, name).raw():
            whole.update(data)
            progress.advance(len(data))
            yield memoryview(content)
        if digest != f"sha256:{whole.hexdigest()}":
            raise Damaged(f"{name}: the blob does not have its digest")

    def _small(self, media_type: str) -> bytes:
        descriptor, limit = self._blobs[media_type], _LIMITS[media_type]
        cipher = self._ciphers.get(descriptor.digest)
        if cipher is None:
            return self._members.whole(descriptor, limit)
        return cipher.open_all(self._members.whole(descriptor, crypt.sealed_size(limit)))
