"""Writing an archive: the pages, then the layers, then what describes them, and one rename.

Compressing runs in worker threads; writing runs in the thread that calls, in the order of its
calls, so that the same input gives the same bytes.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import msgspec

from ckpt.archive import crypt, dsse, host, keys, schema
from ckpt.archive.blobs import FrameWriter, TarWriter
from ckpt.archive.frames import FRAME_CONTENT
from ckpt.archive.newfile import NewFile
from ckpt.archive.pagewrite import PageWriter
from ckpt.archive.schema import Base, Descriptor, Earlier, Framed, Host
from ckpt.model import PAGE_SIZE, Part, Pod
from ckpt.progress import Progress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    from ckpt.archive.read import Archive, Layer


class Summary(msgspec.Struct, frozen=True):
    """What a finished archive holds.

    Attributes:
        bytes: size of the file.
        raw_bytes: size of all that it stands for, before deduplication and compression.
        pages: pages of the pod's memory, and of what else was put among them.
        unique_pages: pages with different contents that are stored in it.
        layers: sealed file-system layers in it.
    """

    bytes: int
    raw_bytes: int
    pages: int
    unique_pages: int
    layers: int


class ArchiveWriter:
    """An archive being written; a context manager. Without commit() nothing is left of it.

    All pages come before the first layer. Not for several threads at once.

    Attributes:
        pages: takes the pages.
    """

    pages: PageWriter

    def __init__(
        self,
        path: Path,
        key: "Ed25519PrivateKey",
        *,
        progress: Progress,
        recipients: "Sequence[X25519PublicKey]" = (),
        earlier: "Archive | None" = None,
    ) -> None:
        """Prepare to write *path*, signed with *key*; `with` opens it.

        Args:
            path: the file; what has the name now is replaced by commit().
            key: the host's private key.
            progress: is told of pages and layers as they are taken.
            recipients: whom it is encrypted to; none: it is not.
            earlier: whose pages and layers it shall not contain; see earlier.check_usable().

        Raises:
            ValueError: as crypt.encrypt().
            FormatError: *earlier* is not as it was signed.
        """
        self._encryption, self._cipher = None, None
        if recipients:
            signer = keys.fingerprint(key.public_key())
            self._encryption, self._cipher = crypt.encrypt(recipients, signer)
        self._place = 0  # in the image manifest's layers, of the blob that is next
        self._path, self._key, self._progress = path, key, progress
        self._stack = ExitStack()
        self._page_blobs: list[Descriptor] = []
        self._layers: list[Descriptor] = []
        self._earlier = earlier
        self._hashes = earlier.page_hashes() if earlier else b""
        self._shared: list[Layer] = []
        self._framed: dict[str, Framed] = {}
        self._base: list[Base] = []
        self._below: list[str] = []
        self._pod: Pod | None = None
        self._created: str | None = None
        self._config = b""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._file = NewFile(self._path)
            stack.callback(self._file.discard)
            self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "archive")
            stack.callback(self._pool.shutdown, cancel_futures=True)
            self._tar = TarWriter(self._file.fd, self._path)
            self._tar.add_member("oci-layout", schema.OCI_LAYOUT)
            self.pages = PageWriter(self._begin(), self._pool, self._progress, self._hashes)
            self._tool, self._host = _tool(), host.describe()  # now: the pod still runs
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def so_far(self) -> tuple[int, int]:
        """Return the file, and how many bytes at its start stay as they are while pages are added.

        Not the first PAGES_AT of them: the header of the pages is there, and written when they end.
        """
        return self._file.fd, self._tar.written

    def set_model(self, pod: Pod) -> None:
        """Give the process model."""
        self._pod = pod

    def set_config(self, config: bytes) -> None:
        """Give the pod's configuration file, as it is."""
        if len(config) > schema.MAX_SMALL:
            raise ValueError(f"a configuration of {len(config)} bytes")
        self._config = config

    def set_base(self, base: list[Base]) -> None:
        """Give the lower layers, topmost first."""
        self._base = base

    def set_below(self, layer_ids: list[str]) -> None:
        """Name the sealed layers that are to be found elsewhere, bottommost first."""
        self._below = layer_ids

    def set_origin(self, machine: Host, created: str) -> None:
        """Say where and when the checkpoint was taken, if it is not here and now."""
        self._host, self._created = machine, created

    def share_layers(self, layer_ids: Sequence[str]) -> int:
        """Leave the layers to the earlier archive that it has, and return how many these are.

        Args:
            layer_ids: of all sealed layers, bottommost first; the first ones of them are left.
        """
        there = self._earlier.layers if self._earlier else []
        for layer, layer_id in zip(there, layer_ids, strict=False):
            if layer.id != layer_id:
                break
            self._shared.append(layer)
        return len(self._shared)

    def add_layer(self, layer_id: str, stream: BinaryIO) -> None:
        """Add a sealed layer, the bottommost first; it ends the pages.

        Args:
            layer_id: the id that it got when it was sealed.
            stream: an OCI layer tar, read to its end.

        Raises:
            ValueError: there are schema.MAX_LAYERS already.
        """
        if len(self._shared) + len(self._layers) == schema.MAX_LAYERS:
            raise ValueError(f"more than {schema.MAX_LAYERS} layers")
        self._end_pages()
        blob = self._begin()
        while content := _read_full(stream, FRAME_CONTENT):
            blob.put(content)
            self._progress.advance(len(content))
        self._layers.append(self._end(blob, schema.LAYER_TYPE, {schema.LAYER_ID: layer_id}))

    def commit(self, *, durable: bool = True) -> Summary:
        """Complete, sign, and make it appear under its name, *durable* if so wished.

        Raises:
            OSError: no space, or another failure of the file system.
        """
        if self._pod is None:
            raise RuntimeError("an archive without a model")
        self._end_pages()
        model = self._add_model(self._pod)
        config = self._add(schema.POD_CONFIG_TYPE, self._config)
        index = self._add(schema.INDEX_TYPE, self._index())
        blobs = [*self._page_blobs, *self._layers, model, config, index]
        self._sign(blobs, self._manifest(self._pod))
        size = self._tar.end()
        self._file.commit(durable=durable)
        raw = sum(self._framed[d.digest].length for d in [*self._layers, model])
        raw += sum(layer.length for layer in self._shared)
        return Summary(
            bytes=size,
            raw_bytes=raw + self.pages.count * PAGE_SIZE,
            pages=self.pages.count,
            unique_pages=self.pages.unique,
            layers=len(self._layers),
        )

    def _end_pages(self) -> None:
        if not self._page_blobs:
            pages = self._end(self.pages.finish(), schema.PAGES_TYPE)
            hashes = self._add(schema.HASHES_TYPE, self.pages.hashes())
            self._page_blobs = [pages, hashes]

    def _add_model(self, pod: Pod) -> Descriptor:
        blob = self._begin()
        encoded = msgspec.msgpack.encode(pod)
        if len(encoded) > schema.MAX_MODEL:
            raise ValueError(f"a model of {len(encoded)} bytes")
        for start in range(0, len(encoded), FRAME_CONTENT):
            blob.put(encoded[start : start + FRAME_CONTENT])
        return self._end(blob, schema.MODEL_TYPE)

    def _index(self) -> bytes:
        index = schema.Index(self._framed, self.pages.runs)
        encoded = msgspec.msgpack.encode(index, order="sorted")
        if len(encoded) > schema.MAX_INDEX:
            raise ValueError(f"an index of {len(encoded)} bytes")
        return encoded

    def _begin(self) -> FrameWriter:
        """Begin a framed blob; blobs are begun, or added, in the order in which they are stored."""
        return FrameWriter(self._tar, self._pool, self._next_cipher())

    def _add(self, media_type: str, data: bytes) -> Descriptor:
        cipher = self._next_cipher()
        if cipher:
            data = cipher.seal_all(data)
        return self._tar.add_blob(self._type(media_type), data)

    def _next_cipher(self) -> crypt.BlobCipher | None:
        self._place += 1
        return self._cipher.blob(self._place - 1) if self._cipher else None

    def _end(
        self, blob: FrameWriter, media_type: str, annotations: dict[str, str] | None = None
    ) -> Descriptor:
        descriptor, framed = blob.finish(self._type(media_type), annotations)
        self._framed[descriptor.digest] = framed
        return descriptor

    def _type(self, media_type: str) -> str:
        return media_type + schema.ENCRYPTED_SUFFIX if self._cipher else media_type

    def _manifest(self, pod: Pod) -> schema.Manifest:
        return schema.Manifest(
            format=schema.FORMAT_VERSION,
            requires=self._requires(),
            tool=self._tool,
            pod=pod.name,
            created=self._created or _now(),
            host=self._host,
            kinds=sorted({part.kind for part in _parts(pod)}),
            base=self._base,
            below=self._below,
            encryption=self._encryption,
            earlier=self._named_earlier(),
        )

    def _named_earlier(self) -> Earlier | None:
        if self._earlier is None:
            return None
        return Earlier(self._earlier.digest, self.pages.below, len(self._shared))

    def _requires(self) -> list[str]:
        needed = {
            schema.LAYERS_BELOW: self._below,
            schema.ENCRYPTED: self._encryption,
            schema.EARLIER: self._earlier,
        }
        return sorted(feature for feature, reason in needed.items() if reason)

    def _sign(self, blobs: list[Descriptor], manifest: schema.Manifest) -> None:
        config = self._tar.add_blob(schema.MANIFEST_TYPE, schema.canonical_json(manifest))
        image = schema.canonical_json(schema.ImageManifest(config, blobs))
        envelope = dsse.sign(image, self._key, keys.fingerprint(self._key.public_key()))
        self._tar.add_blob(schema.IMAGE_MANIFEST_TYPE, image)
        self._tar.add_blob(schema.ENVELOPE_TYPE, envelope)
        self._tar.add_member("index.json", schema.index_json(image, envelope))


def _read_full(stream: BinaryIO, size: int) -> bytes:
    """Return *size* bytes of *stream*, or fewer at its end."""
    data = bytearray()
    while len(data) < size and (piece := stream.read(size - len(data))):
        data += piece
    return bytes(data)


def _parts(pod: Pod) -> Iterator[Part]:
    yield from pod.parts
    yield from (file.part for file in pod.files)
    yield from (item.part for item in pod.objects)
    for process in pod.processes:
        yield from process.parts
        for thread in process.threads:
            yield from thread.parts


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tool() -> str:
    from importlib.metadata import version

    return f"autopod {version('autopod')}"
