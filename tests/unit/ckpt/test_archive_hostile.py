"""Whatever is wrong with an archive, it is refused by name, never by a traceback, never in part."""

import os
import struct
import tarfile

import msgspec
import pytest
import zstandard

from ckpt.archive import container, dsse, frames, schema
from ckpt.archive.blobs import TarWriter
from ckpt.archive.errors import (
    ArchiveError,
    BadSignature,
    FormatError,
    UnsupportedFeature,
    UnsupportedVersion,
    UntrustedKey,
)
from ckpt.archive.read import open_archive
from ckpt.progress import Silent
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import KEYID, STRANGER, TRUSTED, Loose


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An archive of few bytes, which nobody changes."""
    path = tmp_path_factory.mktemp("good") / "mail.pod"
    with pytest.MonkeyPatch.context() as patch:
        archives.make_canonical(path, patch)
    archives.read_all(path)
    return path


@pytest.fixture
def loose(good):
    return Loose(good)


def refused(path, kind, match, trusted=TRUSTED):
    with pytest.raises(kind, match=match) as caught:
        archives.read_all(path, trusted)
    assert type(caught.value) is kind


@pytest.mark.slow
def test_every_flipped_byte(good, tmp_path):
    """In place of each byte two others: one bit off, and all bits off."""
    data, path = good.read_bytes(), tmp_path / "x.pod"
    path.write_bytes(data)
    with path.open("r+b") as file:
        for position, byte in enumerate(data):
            for wrong in (byte ^ 1 << position % 8, byte ^ 0xFF):
                os.pwrite(file.fileno(), bytes([wrong]), position)
                with pytest.raises(ArchiveError):
                    archives.read_all(path)
            os.pwrite(file.fileno(), bytes([byte]), position)
    archives.read_all(path)


@pytest.mark.slow
def test_every_length(good, tmp_path):
    data, path = good.read_bytes(), tmp_path / "x.pod"
    path.write_bytes(data)
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        with pytest.raises(FormatError):
            archives.read_all(path)


@pytest.mark.parametrize("more", [b"\0", b"x", bytes(512), bytes(9216)])
def test_longer(good, tmp_path, more):
    (tmp_path / "x").write_bytes(good.read_bytes() + more)
    refused(tmp_path / "x", FormatError, f"{len(more)} bytes follow the end")


def test_not_an_archive(tmp_path):
    (tmp_path / "text").write_text("hello " * 1000)
    refused(tmp_path / "text", FormatError, "text: not an archive of this format")
    (tmp_path / "empty").write_bytes(b"")
    refused(tmp_path / "empty", FormatError, "empty: the file ends at byte 0")
    (tmp_path / "zeros").write_bytes(bytes(10240))
    refused(tmp_path / "zeros", FormatError, "bytes follow the end")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", FormatError, "not a regular file")
    refused(tmp_path, FormatError, "not a regular file")
    with pytest.raises(FileNotFoundError):
        open_archive(tmp_path / "nothing", TRUSTED)


# --- the signature ---------------------------------------------------------------------


def test_untrusted_key(good):
    refused(good, UntrustedKey, f"signed by key {KEYID}, which is not trusted here", trusted={})


def test_signed_by_a_stranger_in_the_name_of_a_trusted_key(loose, tmp_path):
    loose.write(tmp_path / "x")
    with (tmp_path / "x").open("r+b") as file:
        tar = container.members(file.fileno())
        manifest = container.read_exactly(file.fileno(), tar[-3].offset, tar[-3].size)
    path = tmp_path / "forged"
    with path.open("w+b") as file:
        writer = TarWriter(file.fileno(), path)
        writer.add_member("oci-layout", schema.OCI_LAYOUT)
        for descriptor, data in loose.blobs:
            writer.add_blob(descriptor["mediaType"], data)
        writer.add_blob(schema.MANIFEST_TYPE, msgspec.json.encode(loose.manifest))
        envelope = dsse.sign(manifest, STRANGER, KEYID)
        writer.add_blob(schema.IMAGE_MANIFEST_TYPE, manifest)
        writer.add_blob(schema.ENVELOPE_TYPE, envelope)
        writer.add_member("index.json", schema.index_json(manifest, envelope))
        writer.end()
    refused(path, BadSignature, f"not one of key {KEYID} over this archive")


def test_a_changed_manifest_with_the_old_signature(good, tmp_path):
    data = good.read_bytes().replace(b'"schemaVersion":2}', b'"schemaVersion":3}', 1)
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", BadSignature, "over this archive")


def test_other_ways_to_write_the_same_signature(good, tmp_path):
    """The last digit of base64 has bits that mean nothing."""
    data = good.read_bytes()
    at = data.index(b'=="}]}') - 1
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = digits[digits.index(data[at]) ^ 1]
    (tmp_path / "x").write_bytes(data[:at] + bytes([other]) + data[at + 1 :])
    refused(tmp_path / "x", FormatError, "envelope does not belong")


def test_nothing_is_parsed_before_the_signature(good, tmp_path, monkeypatch):
    """No decoder runs on an archive of a stranger, however it is spoiled."""

    def parsed(*_args, **_kwargs):
        raise AssertionError("parsed before it was verified")

    for module in (msgspec.json, msgspec.msgpack):
        monkeypatch.setattr(module, "decode", parsed)
    monkeypatch.setattr(zstandard, "ZstdDecompressor", parsed)
    refused(good, UntrustedKey, "not trusted", trusted={})
    (tmp_path / "x").write_bytes(good.read_bytes().replace(b'"layers"', b'"LAYERS"', 1))
    refused(tmp_path / "x", BadSignature, "over this archive")


# --- the tar ---------------------------------------------------------------------------


def _members(path):
    with path.open("rb") as file:
        fd = file.fileno()
        return [
            (m.name, container.read_exactly(fd, m.offset, m.size)) for m in container.members(fd)
        ]


def _write_tar(path, members):
    with path.open("wb") as file:
        for name, data in members:
            file.write(container.header(name, len(data)) + data)
            file.write(bytes(container.padding(len(data))))
        file.write(bytes(1024))


def test_members_in_another_order(good, tmp_path):
    members = _members(good)
    members[1], members[2] = members[2], members[1]
    _write_tar(tmp_path / "x", members)
    refused(tmp_path / "x", FormatError, "not the blobs of the manifest in their order")


@pytest.mark.parametrize("number", range(12))
def test_a_member_left_out_or_twice(good, tmp_path, number):
    members = _members(good)
    if number < len(members):
        _write_tar(tmp_path / "less", members[:number] + members[number + 1 :])
        with pytest.raises(ArchiveError):
            archives.read_all(tmp_path / "less")
        _write_tar(tmp_path / "more", members[: number + 1] + members[number:])
        with pytest.raises(ArchiveError):
            archives.read_all(tmp_path / "more")


def test_another_blob_beside_the_signed_ones(good, tmp_path):
    members = _members(good)
    members.insert(1, ("blobs/sha256/" + "0" * 64, b"smuggled"))
    _write_tar(tmp_path / "x", members)
    refused(tmp_path / "x", FormatError, "not the blobs of the manifest")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE]
)
def test_members_that_are_no_files(good, tmp_path, kind):
    data = bytearray(good.read_bytes())
    header = tarfile.TarInfo("oci-layout")
    header.type, header.linkname = kind, "/etc/passwd"
    data[:512] = header.tobuf(tarfile.USTAR_FORMAT)[:512]
    (tmp_path / "x").write_bytes(data)
    refused(tmp_path / "x", FormatError, "at byte 0 is not canonical|not an archive")


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/passwd", "blobs/sha256/../x", "oci"])
def test_names_outside(good, tmp_path, name):
    data = good.read_bytes()
    (tmp_path / "x").write_bytes(container.header(name, 4) + b"evil" + bytes(508) + data)
    refused(tmp_path / "x", FormatError, "not an archive of this format")


@pytest.mark.parametrize("size", [1 << 40, 8**11 - 1, 8**11, (1 << 63) - 1, (1 << 88) - 1])
def test_huge_members(good, tmp_path, size):
    """A size beyond the file is refused, nothing of that size is allocated."""
    members = _members(good)
    with (tmp_path / "x").open("wb") as file:
        file.write(container.header("oci-layout", size) + members[0][1])
    refused(tmp_path / "x", FormatError, f"oci-layout: {size} bytes announced")


def test_too_many_members(tmp_path):
    _write_tar(tmp_path / "x", [("oci-layout", b"")] * (container.MAX_MEMBERS + 1))
    refused(tmp_path / "x", FormatError, "more than 1024 members")


def test_a_large_blob_has_a_size_that_other_tools_read(tmp_path):
    """9 GiB do not fit the octal field; the file is sparse."""
    size = 9 << 30
    with (tmp_path / "x").open("wb") as file:
        file.write(container.header("blobs/sha256/" + "0" * 64, size))
        file.truncate(512 + size + 1024)
    with tarfile.open(tmp_path / "x") as tar:
        assert [member.size for member in tar] == [size]
    with (tmp_path / "x").open("rb") as file:
        assert [member.size for member in container.members(file.fileno())] == [size]


@pytest.mark.parametrize("place", [-3, -2, -1, 0])
def test_too_large_to_be_read_at_all(good, tmp_path, place):
    """What is read before the signature holds has a limit."""
    members = _members(good)
    name, data = members[place]
    members[place] = (name, data.ljust(2 << 20, b" "))
    _write_tar(tmp_path / "x", members)
    with pytest.raises(FormatError, match=r"bytes where \d+ are allowed"):
        archives.read_all(tmp_path / "x")


# --- signed by a trusted key, and wrong all the same -----------------------------------


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
    members = _members(tmp_path / "good")
    image = msgspec.json.decode(members[-3][1])
    image["config"]["size"] += 1
    with (tmp_path / "x").open("w+b") as file:
        tar = TarWriter(file.fileno(), tmp_path / "x")
        tar.add_member("oci-layout", schema.OCI_LAYOUT)
        for _, data in members[1:-3]:
            tar.add_blob("", data)
        archives.seal(tar, msgspec.json.encode(image))
    refused(tmp_path / "x", FormatError, "missing, or not of")


# --- files that change while they are read ---------------------------------------------


def test_a_frame_that_changes_after_opening(good, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(good.read_bytes())
    with open_archive(path, TRUSTED) as archive:
        with path.open("r+b") as file:
            pages = container.members(file.fileno())[1]
            file.seek(pages.offset + pages.size - 1)
            file.write(b"\x55")
        with pytest.raises(FormatError, match="pages, frame 0: a frame does not have the digest"):
            archive.pages.read(0, 1)


def test_a_file_that_is_cut_after_opening(good, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(good.read_bytes())
    with open_archive(path, TRUSTED) as archive:
        os.truncate(path, 600)
        with pytest.raises(FormatError, match="the file ends at byte"):
            archive.verify(Silent())
