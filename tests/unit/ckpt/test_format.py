"""docs/format.md, the golden archive, and the program say the same."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import zstandard

from ckpt import show
from ckpt.archive import container, errors, frames, keys, schema
from ckpt.archive.read import open_archive
from ckpt.model import MODEL_VERSION, PAGE_SIZE
from tests.unit.ckpt import archives

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs/format.md").read_text()
VECTORS = ROOT / "tests/vectors/accept"


def section(title):
    """The text below a heading."""
    return re.split(rf"^##+ {title}$", DOCUMENT, flags=re.MULTILINE)[1].split("\n## ")[0]


def first_column(title):
    rows = re.findall(r"^\| (.*?) \|", section(title).split("\n### ")[0], flags=re.MULTILINE)
    return [row.strip("`") for row in rows[2:]]


def test_media_types():
    assert first_column("Blobs") == [
        schema.PAGES_TYPE,
        schema.HASHES_TYPE,
        schema.LAYER_TYPE,
        schema.MODEL_TYPE,
        schema.POD_CONFIG_TYPE,
        schema.INDEX_TYPE,
        schema.MANIFEST_TYPE,
        schema.IMAGE_MANIFEST_TYPE,
        schema.ENVELOPE_TYPE,
    ]
    assert schema.ARTIFACT_TYPE in section("Container")
    assert schema.LAYER_ID in section("Blobs")


@pytest.mark.parametrize(
    ("title", "struct"),
    [
        ("Pod manifest", schema.Manifest),
        ("Index blob", schema.Index),
        ("Incremental archives", schema.Earlier),
    ],
)
def test_fields(title, struct):
    assert first_column(title) == list(struct.__struct_fields__)


def test_fields_of_fields():
    assert all(f"`{name}`" in section("Pod manifest") for name in schema.Host.__struct_fields__)
    assert all(f"`{name}`" in section("Pod manifest") for name in schema.Base.__struct_fields__)
    assert all(f"`{name}`" in section("Index blob") for name in schema.Framed.__struct_fields__)


def test_limits():
    limits = dict(re.findall(r"^\| (.*?) \| (\d+) \|$", section("Limits"), flags=re.MULTILINE))
    assert list(map(int, limits.values())) == [
        container.MAX_MEMBERS,
        schema.MAX_LAYERS,
        schema.MAX_SMALL,
        schema.MAX_INDEX,
        schema.MAX_MODEL,
        schema.MAX_PAGES,
        frames.FRAME_CONTENT,
        frames.MAX_FRAME,
    ]


def test_versions():
    versions = list(map(int, first_column("Version history")))
    assert versions == sorted(schema.READABLE_VERSIONS)
    assert versions[-1] == schema.FORMAT_VERSION
    assert f"`version` is {MODEL_VERSION}" in section("Process model")
    assert str(PAGE_SIZE) in section("Terminology")


def test_errors():
    for kind in vars(errors).values():
        if isinstance(kind, type) and kind not in {errors.ArchiveError, errors.KeyFileError}:
            assert kind.__name__ in section("Verification")


# --- the golden archive ----------------------------------------------------------------


def trusted():
    key = keys.load_public(VECTORS / "tiny.pem")
    return {keys.fingerprint(key): key}


def test_the_golden_archive_is_read():
    with open_archive(VECTORS / "tiny.pod", trusted()) as archive:
        assert json.loads(show.as_json(archive)) == json.loads((VECTORS / "tiny.json").read_text())
        assert archive.pages.read(0, 3) == archives.PAGES
        assert b"".join(archive.layer_tar(archive.layers[0])) == archives.LAYER
    archives.read_all(VECTORS / "tiny.pod", trusted())


def test_the_golden_archive_is_written(tmp_path, monkeypatch):
    """Byte by byte where zstd is the version that made it; else in all that is not compressed."""
    archives.make_canonical(tmp_path / "tiny.pod", monkeypatch)
    recorded = (VECTORS / "tiny.sha256").read_text().split()
    if tuple(map(int, recorded[2].split("."))) == zstandard.ZSTD_VERSION:
        assert hashlib.sha256((tmp_path / "tiny.pod").read_bytes()).hexdigest() == recorded[0]
    with (
        open_archive(tmp_path / "tiny.pod", archives.TRUSTED) as ours,
        open_archive(VECTORS / "tiny.pod", trusted()) as golden,
    ):
        assert ours.manifest == golden.manifest
        assert ours.model() == golden.model()
        assert ours.config() == golden.config()


def make_since(path, monkeypatch):
    with open_archive(VECTORS / "tiny.pod", trusted()) as tiny:
        pages = b"".join(map(archives.page, (2, 3, 1, 3)))
        layers = ((archives.LAYER_ID, archives.LAYER), ("f" * 32, b"what came later"))
        archives.make_canonical(path, monkeypatch, pages=pages, layers=layers, earlier=tiny)


def test_the_golden_incremental_archive(tmp_path, monkeypatch):
    """It is read, with the one beside it, and written."""
    with open_archive(VECTORS / "since.pod", trusted()) as golden:
        assert golden.earlier.path == VECTORS / "tiny.pod"
        assert golden.pages.read(0, 4) == b"".join(map(archives.page, (2, 3, 1, 3)))
        tars = [b"".join(golden.layer_tar(layer)) for layer in golden.layers]
        assert tars == [archives.LAYER, b"what came later"]
        manifest = golden.manifest
    archives.read_all(VECTORS / "since.pod", trusted())
    make_since(tmp_path / "since.pod", monkeypatch)
    recorded = (VECTORS / "since.sha256").read_text().split()
    if tuple(map(int, recorded[2].split("."))) == zstandard.ZSTD_VERSION:
        assert hashlib.sha256((tmp_path / "since.pod").read_bytes()).hexdigest() == recorded[0]
    with open_archive(tmp_path / "since.pod", archives.TRUSTED, since=VECTORS / "tiny.pod") as ours:
        assert ours.manifest == manifest


def test_the_signature_is_what_openssl_verifies(tmp_path):
    """By the document alone: base64, pre-authentication encoding, Ed25519."""
    import base64
    import subprocess
    import tarfile

    with tarfile.open(VECTORS / "tiny.pod") as tar:
        index = json.load(tar.extractfile("index.json"))
        name = index["manifests"][1]["digest"].replace(":", "/")
        envelope = json.load(tar.extractfile(f"blobs/{name}"))
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"]
    (tmp_path / "pae").write_bytes(f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", VECTORS / "tiny.pem", "-rawin"]
    subprocess.run(
        [*command, "-in", tmp_path / "pae", "-sigfile", tmp_path / "sig"],
        check=True,
        capture_output=True,
    )


def test_the_page_map_by_hand(tmp_path):
    """Pages 1, 2, 1: the first two unique pages, then the first again."""
    archives.make(tmp_path / "x.pod")
    index = archives.Loose(tmp_path / "x.pod").index
    assert index["page_runs"].hex(" ", 4) == "00000000 02000000 00000000 01000000"
