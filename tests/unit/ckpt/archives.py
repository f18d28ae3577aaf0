"""Small archives for tests: written as the program writes them, or composed wrong on purpose."""

import io
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ckpt.archive import container, dsse, keys, schema, write
from ckpt.archive.blobs import TarWriter
from ckpt.archive.read import open_archive
from ckpt.archive.schema import Base, Host
from ckpt.archive.write import ArchiveWriter
from ckpt.model import (
    PAGE_SIZE,
    Clocks,
    Object,
    OpenFile,
    Part,
    Pod,
    Process,
    Thread,
)
from ckpt.model import (
    Descriptor as FileDescriptor,
)
from ckpt.progress import Silent

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYID = keys.fingerprint(KEY.public_key())
TRUSTED = {KEYID: KEY.public_key()}
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))

LAYER_ID = "0123456789abcdef" * 2
LAYER = b"not really a tar, which nobody here unpacks"
CONFIG = b'hostname = "mail"\n'
BASE = [Base("/srv/mail", "ab" * 32)]
HOST = Host("6.1.0-18-amd64", "x86_64", ["avx2", "sse2"])
CREATED = "2026-01-02T03:04:05Z"


def part(kind, **state):
    return Part(kind, msgspec.Raw(msgspec.msgpack.encode(state)))


MODEL = Pod(
    version=1,
    name="mail",
    architecture="x86_64",
    clocks=Clocks(1, 2, 3),
    processes=[
        Process(
            pid=2,
            parent=1,
            group=2,
            session=2,
            exit_status=None,
            descriptors=[FileDescriptor(0, 0, False)],
            threads=[Thread(2, [part("names", comm=b"exim4")])],
            parts=[part("memory", pages=[0, 2])],
        ),
        Process(3, 2, 2, 2, 200 << 8, [], [], []),
    ],
    files=[OpenFile(0, ["rdonly"], part("regular", path=b"/etc/\x1b[31mred", offset=7))],
    objects=[Object(0, part("pipe", content=None))],
    parts=[part("uts", hostname="mail")],
)


def page(number):
    """A page that is like no other: its content is its number."""
    return number.to_bytes(8, "little") * (PAGE_SIZE // 8)


PAGES = page(1) + page(2) + page(1)


def make(
    path,
    *,
    key=KEY,
    pages=PAGES,
    layers=((LAYER_ID, LAYER),),
    model=MODEL,
    recipients=(),
    earlier=None,
):
    """Write an archive to *path* as the program does; return its summary."""
    with ArchiveWriter(
        path, key, progress=Silent(), recipients=recipients, earlier=earlier
    ) as writer:
        writer.pages.add(pages)
        there = writer.share_layers([layer_id for layer_id, _ in layers])
        for layer_id, content in layers[there:]:
            writer.add_layer(layer_id, io.BytesIO(content))
        writer.set_model(model)
        writer.set_config(CONFIG)
        writer.set_base(BASE)
        return writer.commit()


def make_since(path, earlier, *, trusted=TRUSTED, identities=(), **more):
    """Write an archive that builds upon the archive *earlier*."""
    with open_archive(earlier, trusted, identities) as archive:
        return make(path, earlier=archive, **more)


def make_canonical(path, monkeypatch, **more):
    """The same at any time on any host."""
    monkeypatch.setattr(write.host, "describe", lambda: HOST)
    monkeypatch.setattr(write, "_now", lambda: CREATED)
    monkeypatch.setattr(write, "_tool", lambda: "autopod 0.1.0")
    return make(path, **more)


def read_all(path, trusted=TRUSTED, since=None):
    """Do everything with an archive that can be done with one."""
    with open_archive(path, trusted, since=since) as archive:
        archive.verify(Silent())
        archive.pages.read(0, archive.pages.count)
        for layer in archive.layers:
            b"".join(archive.layer_tar(layer))
        return archive.model()


class Loose:
    """An archive in pieces, to be changed and signed again: wrong, but by a trusted key."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            members = container.members(file.fileno())
            contents = {
                m.name: container.read_exactly(file.fileno(), m.offset, m.size) for m in members
            }
        self.image = msgspec.json.decode(contents[members[-3].name])

        def content(descriptor):
            return contents["blobs/" + descriptor["digest"].replace(":", "/")]

        self.manifest = msgspec.json.decode(content(self.image["config"]))
        self.blobs = [(descriptor, content(descriptor)) for descriptor in self.image["layers"]]
        self.index = None  # encrypted
        if "encryption" not in self.manifest:
            self.index = msgspec.msgpack.decode(self.get(schema.INDEX_TYPE))
        self.image_changes = {}
        self.change_image = lambda image: image

    def get(self, media_type):
        return next(data for d, data in self.blobs if d["mediaType"] == media_type)

    def put(self, media_type, data):
        """Replace a blob, and its name in the index."""
        for number, (descriptor, _) in enumerate(self.blobs):
            if descriptor["mediaType"] == media_type:
                framed = self.index["frames"].pop(descriptor["digest"], None)
                self.blobs[number] = (descriptor, data)
                if framed is not None:
                    self.index["frames"][schema.digest(data)] = framed

    def framed(self, media_type):
        """Where the index says how the blob is cut."""
        return self.index["frames"][schema.digest(self.get(media_type))]

    def write_raw(self, path, media_type, change):
        """Replace a blob, whose name in the index stays as it was, and write it."""
        self.blobs = [(d, change(b) if d["mediaType"] == media_type else b) for d, b in self.blobs]
        self.write(path)

    def write(self, path, key=KEY, *, keep_index=False):
        if not keep_index and schema.INDEX_TYPE in {d["mediaType"] for d, _ in self.blobs}:
            self.put(schema.INDEX_TYPE, msgspec.msgpack.encode(self.index))
        with path.open("w+b") as file:
            tar = TarWriter(file.fileno(), path)
            tar.add_member("oci-layout", schema.OCI_LAYOUT)
            blobs = []
            for descriptor, data in self.blobs:
                tar.append(data)
                blobs.append(tar.end_blob(descriptor["mediaType"], descriptor.get("annotations")))
            config = tar.add_blob(schema.MANIFEST_TYPE, msgspec.json.encode(self.manifest))
            image = msgspec.to_builtins(schema.ImageManifest(config, blobs)) | self.image_changes
            seal(tar, msgspec.json.encode(self.change_image(image)), key)


def seal(tar, image, key=KEY):
    """End *tar* with the image manifest *image*, signed."""
    envelope = dsse.sign(image, key, keys.fingerprint(key.public_key()))
    tar.add_blob(schema.IMAGE_MANIFEST_TYPE, image)
    tar.add_blob(schema.ENVELOPE_TYPE, envelope)
    tar.add_member("index.json", schema.index_json(image, envelope))
    tar.end()


def refused(path, kind, match, trusted=TRUSTED):
    """It is refused as *kind*, and by no name of a special case of it."""
    with pytest.raises(kind, match=match) as caught:
        read_all(path, trusted)
    assert type(caught.value) is kind


def members_of(path):
    with path.open("rb") as file:
        fd = file.fileno()
        return [
            (m.name, container.read_exactly(fd, m.offset, m.size)) for m in container.members(fd)
        ]


def write_tar(path, members):
    with path.open("wb") as file:
        for name, data in members:
            file.write(container.header(name, len(data)) + data)
            file.write(bytes(container.padding(len(data))))
        file.write(bytes(1024))
