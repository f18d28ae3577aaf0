"""Archives that a trusted key has signed, and that are wrong all the same."""

import struct

import msgspec
import pytest
import zstandard

from ckpt.archive import frames, schema
from ckpt.archive.blobs import TarWriter
from ckpt.archive.errors import (
    FormatError,
    UnsupportedFeature,
    UnsupportedVersion,
)
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import members_of, refused


def test_composed_as_written(loose, tmp_path):
    """What the tests below change is good when unchanged."""
    loose.write(tmp_path / "x")
    assert archives.read_all(tmp_path / "x") == archives.MODEL


def test_a_later_version(loose, tmp_path):
    loose.manifest = {"format": 2, "requires": [], "something": "else"}
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", UnsupportedVersion, "x: format version 2; this version reads 1")


def test_a_later_artifact_type(loose, tmp_path):
    loose.image_changes = {"artifactType": "application/vnd.autopod.pod.v2"}
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", UnsupportedVersion, "vnd.autopod.pod.v2")


def test_an_unknown_feature(loose, tmp_path):
    loose.manifest["requires"] = ["parent-pages"]
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", UnsupportedFeature, "needs feature 'parent-pages', which is not known")


def test_unknown_fields_are_ignored(loose, tmp_path):
    loose.manifest["weather"] = "fine"
    loose.index["mood"] = 1
    loose.write(tmp_path / "x")
    assert archives.read_all(tmp_path / "x") == archives.MODEL


def test_a_later_model(loose, tmp_path):
    model = msgspec.msgpack.encode({"version": 2, "all": "new"})
    _replace_model(loose, model)
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", UnsupportedVersion, "process model of version 2, not 1")


@pytest.mark.parametrize("model", [b"", b"\xc1", b"\x91" * 5000 + b"\x90", b"\x80"])
def test_a_model_that_is_none(loose, tmp_path, model):
    _replace_model(loose, model)
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "process model")


def _replace_model(loose, model):
    frame, entry = frames.compress(model) if model else (b"", b"")
    loose.put(schema.MODEL_TYPE, frame)
    loose.framed(schema.MODEL_TYPE).update(length=len(model), table=entry)


def test_a_frame_that_would_fill_the_memory(loose, tmp_path):
    """Its header announces 2 TiB, its digest is right: nothing is allocated."""
    frame = zstandard.ZstdCompressor().compress(b"\0" * 100)
    bomb = frame[:4] + bytes([0xE0]) + struct.pack("<Q", 1 << 41) + frame[6:]
    assert zstandard.frame_content_size(bomb) == 1 << 41
    _replace_frame(loose, schema.MODEL_TYPE, bomb, 100)
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, f"announces {1 << 41} bytes, not 100")


def test_a_frame_that_does_not_say_its_size(loose, tmp_path):
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    _replace_frame(loose, schema.MODEL_TYPE, frame, 100)
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "announces -1 bytes")


@pytest.mark.parametrize("junk", [b"no frame at all", b"\x28\xb5\x2f\xfd"])
def test_a_frame_that_is_none(loose, tmp_path, junk):
    _replace_frame(loose, schema.MODEL_TYPE, junk, 100)
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "process model, frame 0")


def test_more_behind_a_frame(loose, tmp_path):
    frame = zstandard.ZstdCompressor().compress(bytes(100))
    _replace_frame(loose, schema.MODEL_TYPE, frame + frame, 100)
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "cannot be decompressed")


def _replace_frame(loose, media_type, frame, length):
    import hashlib

    loose.put(media_type, frame)
    entry = struct.pack("<I32s", len(frame), hashlib.sha256(frame).digest())
    loose.framed(media_type).update(length=length, table=entry)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"length": -1}, "cannot describe"),
        ({"length": 1 << 60}, "cannot describe"),
        ({"length": 0}, "cannot describe"),
        ({"table": b""}, "cannot describe"),
        ({"table": struct.pack("<I32s", 0, bytes(32))}, "a frame of 0 bytes"),
        ({"table": struct.pack("<I32s", 1 << 31, bytes(32))}, "a frame of 2147483648 bytes"),
        ({"table": struct.pack("<I32s", 77, bytes(32))}, "the frames of a blob have 77 bytes"),
        ({"table": "text"}, "index blob"),
    ],
)
def test_a_frame_table_that_contradicts_itself(loose, tmp_path, changes, match):
    loose.framed(schema.PAGES_TYPE).update(changes)
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, match)


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 2), (0, 0)],  # an empty run
        [(0, 1), (1, 1), (0, 1)],  # two runs that are one
        [(1, 1), (0, 1)],  # a unique page that comes before one that is new
        [(0, 1)],  # a unique page that is nowhere
        [(0, 3)],  # one that is not there
        [(0, 2), (0, 0xFFFFFFFF), (0, 0xFFFFFFFF)],
    ],
)
def test_a_page_map_that_cannot_be(loose, tmp_path, runs):
    loose.index["page_runs"] = b"".join(struct.pack("<II", *run) for run in runs)
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, r"page map|begins a run that cannot be")


def test_a_page_map_cut_short(loose, tmp_path):
    loose.index["page_runs"] += b"\0"
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "a page map of 17 bytes")


def test_pages_without_hashes(loose, tmp_path):
    loose.put(schema.HASHES_TYPE, bytes(32))
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "pages and page hashes do not agree")


def test_wrong_page_hashes(loose, tmp_path):
    loose.put(schema.HASHES_TYPE, bytes(64))
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "unique page 0 does not have the hash")


def test_a_blob_of_an_unknown_type(loose, tmp_path):
    loose.blobs.append(({"mediaType": "text/plain", "digest": "", "size": 0}, b"new"))
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "blobs of the types")


@pytest.mark.parametrize("media_type", sorted(schema.SINGLE_TYPES))
def test_a_type_of_blob_that_is_missing(loose, tmp_path, media_type):
    loose.blobs = [(d, data) for d, data in loose.blobs if d["mediaType"] != media_type]
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "blobs of the types")


@pytest.mark.parametrize(
    "annotations",
    [{}, {schema.LAYER_ID: ""}, {schema.LAYER_ID: "../" * 11}, {schema.LAYER_ID: "A" * 32}],
)
def test_a_layer_without_an_id(loose, tmp_path, annotations):
    loose.blobs = [({**d, "annotations": annotations}, data) for d, data in loose.blobs]
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "a layer with the id")


def test_a_framed_blob_that_the_index_does_not_know(loose, tmp_path):
    loose.index["frames"] = {}
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "not in the index")


@pytest.mark.parametrize(
    "manifest", [b"{}", b"[" * 100000, b'{"format":"one"}', b"\xff", b'{"format":1,"requires":[]}']
)
def test_a_pod_manifest_that_is_none(loose, tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(loose, "manifest", msgspec.Raw(manifest))
    loose.write(tmp_path / "x")
    refused(tmp_path / "x", FormatError, "pod manifest")


@pytest.mark.parametrize("image", [b"{}", b"null", b"\xff\xfe", b"[" * 100000])
def test_an_image_manifest_that_is_none(tmp_path, image):
    path = tmp_path / "x"
    with path.open("w+b") as file:
        tar = TarWriter(file.fileno(), path)
        tar.add_member("oci-layout", schema.OCI_LAYOUT)
        archives.seal(tar, image)
    refused(path, FormatError, "image manifest")


def test_a_descriptor_that_lies_about_its_size(loose, tmp_path):
    loose.write(tmp_path / "good")
    members = members_of(tmp_path / "good")
    image = msgspec.json.decode(members[-3][1])
    image["config"]["size"] += 1
    with (tmp_path / "x").open("w+b") as file:
        tar = TarWriter(file.fileno(), tmp_path / "x")
        tar.add_member("oci-layout", schema.OCI_LAYOUT)
        for _, data in members[1:-3]:
            tar.add_blob("", data)
        archives.seal(tar, msgspec.json.encode(image))
    refused(tmp_path / "x", FormatError, "missing, or not of")
