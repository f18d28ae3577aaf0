"""The archive's vocabulary: media types, limits, and the JSON and MessagePack structures. Pure.

docs/format.md is normative; tests hold the two together. Terms: the *image manifest* is OCI's and
lists every blob by digest; it is what is signed. The *pod manifest* (OCI calls the place "config")
says what the archive is. The *index blob* says where in the blobs the frames and pages are.
"""

import hashlib
from typing import Final

import msgspec

FORMAT_VERSION: Final = 1
READABLE_VERSIONS: Final = frozenset({1})
# 1: first version.

LAYERS_BELOW: Final = "layers-below"
"""The archive builds upon layers that it does not contain."""

ENCRYPTED: Final = "encrypted"
"""All blobs but the pod manifest are encrypted; see crypt.py."""

EARLIER: Final = "earlier-archive"
"""The archive builds upon another one, which has pages and layers that it does not contain."""

FEATURES: Final = frozenset({LAYERS_BELOW, ENCRYPTED, EARLIER})
"""Features that an archive can require and this version has; an archive on its own needs none."""

ARTIFACT_TYPE: Final = "application/vnd.autopod.pod.v1"
IMAGE_MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
MANIFEST_TYPE: Final = "application/vnd.autopod.manifest.v1+json"
PAGES_TYPE: Final = "application/vnd.autopod.pages.v1+zstd"
HASHES_TYPE: Final = "application/vnd.autopod.page-hashes.v1"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
MODEL_TYPE: Final = "application/vnd.autopod.model.v1+msgpack+zstd"
POD_CONFIG_TYPE: Final = "application/vnd.autopod.pod-config.v1+toml"
INDEX_TYPE: Final = "application/vnd.autopod.index.v1+msgpack"

SINGLE_TYPES: Final = frozenset({PAGES_TYPE, HASHES_TYPE, MODEL_TYPE, POD_CONFIG_TYPE, INDEX_TYPE})
"""What every archive has exactly one blob of; LAYER_TYPE may be there any number of times."""

ENCRYPTED_SUFFIX: Final = "+encrypted"
"""Of the media type of an encrypted blob."""

SCHEME: Final = "x25519-hkdf-sha256-chacha20poly1305"

LAYER_ID: Final = "autopod.layer.id"
"""Annotation of a layer's descriptor: the id that it got when it was sealed."""

MAX_SMALL: Final = 1 << 20
"""Bytes in image manifest, pod manifest and pod configuration, each."""

MAX_INDEX: Final = 1 << 28
MAX_MODEL: Final = 1 << 28
MAX_LAYERS: Final = 512
MAX_PAGES: Final = (1 << 32) - 1

OCI_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob: what it is, which it is, how many bytes it has. Source: OCI descriptor.md."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    artifact_type: str = ""


class ImageManifest(msgspec.Struct, frozen=True, rename="camel"):
    """OCI's image manifest; `layers` holds all blobs of the archive but the pod manifest."""

    config: Descriptor
    layers: list[Descriptor]
    artifact_type: str = ARTIFACT_TYPE
    media_type: str = IMAGE_MANIFEST_TYPE
    schema_version: int = 2


class ImageIndex(msgspec.Struct, frozen=True, rename="camel"):
    """OCI's index.json."""

    manifests: list[Descriptor]
    artifact_type: str = ARTIFACT_TYPE
    media_type: str = IMAGE_INDEX_TYPE
    schema_version: int = 2


class Base(msgspec.Struct, frozen=True):
    """A read-only lower layer of the pod, which the archive does not contain.

    Attributes:
        path: where it was on the host of the checkpoint. A suggestion, never trusted.
        identity: as `stackfs identity` prints it: what is in it.
    """

    path: str
    identity: str


class Host(msgspec.Struct, frozen=True):
    """The machine of the checkpoint.

    Attributes:
        kernel: release, as uname(2).
        architecture: machine, as uname(2).
        cpu_features: flags of /proc/cpuinfo that programs choose their code by, sorted.
    """

    kernel: str
    architecture: str
    cpu_features: list[str]


class Version(msgspec.Struct, frozen=True):
    """The part of the pod manifest that is read first."""

    format: int
    requires: list[str]


class Encryption(msgspec.Struct, frozen=True):
    """To whom the archive is encrypted.

    Attributes:
        scheme: SCHEME.
        recipients: for each the wrapped file key, in base64; see crypt.py. It does not say whose.
    """

    scheme: str
    recipients: list[str]


class Earlier(msgspec.Struct, frozen=True):
    """The archive that an incremental one builds upon, which is whole itself.

    Attributes:
        manifest: digest of its image manifest.
        pages: how many unique pages it has; the incremental archive's own are numbered from there.
        layers: how many of its layers, from the bottom, lie below the incremental archive's own.
    """

    manifest: str
    pages: int
    layers: int


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pod manifest.

    Attributes:
        format: FORMAT_VERSION of the writer.
        requires: features without which the archive cannot be read right.
        tool: name and version of the program that wrote it.
        pod: the pod's name.
        created: time of the checkpoint, RFC 3339, UTC.
        host: where it was taken.
        kinds: names of the kinds of kernel object in the process model, sorted. A restart needs
            to know them all; verifying and showing need not.
        base: lower layers, topmost first.
        below: ids of the sealed layers that are not in the archive and lie below those that are,
            bottommost first; LAYERS_BELOW is required if there are any.
        encryption: ENCRYPTED is required if it is there.
        earlier: EARLIER is required if it is there.
    """

    format: int
    requires: list[str]
    tool: str
    pod: str
    created: str
    host: Host
    kinds: list[str]
    base: list[Base]
    below: list[str] = []
    encryption: Encryption | None = None
    earlier: Earlier | None = None


class Framed(msgspec.Struct, frozen=True):
    """How a framed blob is cut.

    Attributes:
        length: bytes of content, decompressed.
        table: an entry per frame, see frames.py.
    """

    length: int
    table: bytes


class Index(msgspec.Struct, frozen=True):
    """The index blob.

    Attributes:
        frames: framed blobs by digest.
        page_runs: the page map, see pages.py.
    """

    frames: dict[str, Framed]
    page_runs: bytes


def digest(data: bytes | memoryview) -> str:
    """Return the OCI digest of *data*: "sha256:" and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(value: msgspec.Struct) -> bytes:
    """Return *value* as JSON with sorted keys and no white space."""
    return msgspec.json.encode(value, order="sorted")


def index_json(manifest: bytes, envelope: bytes) -> bytes:
    """Return the only index.json that belongs to an image manifest and its envelope."""
    image = Descriptor(
        IMAGE_MANIFEST_TYPE,
        digest(manifest),
        len(manifest),
        {"org.opencontainers.image.ref.name": "pod"},
        ARTIFACT_TYPE,
    )
    signature = Descriptor(ENVELOPE_TYPE, digest(envelope), len(envelope))
    return canonical_json(ImageIndex([image, signature]))
