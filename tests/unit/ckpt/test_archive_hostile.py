"""Whatever is wrong with an archive, it is refused by name, never by a traceback, never in part."""

import os
import tarfile

import msgspec
import pytest
import zstandard

from ckpt.archive import container, dsse, schema
from ckpt.archive.blobs import TarWriter
from ckpt.archive.errors import (
    ArchiveError,
    BadSignature,
    FormatError,
    UntrustedKey,
)
from ckpt.archive.read import open_archive
from ckpt.progress import Silent
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import KEYID, STRANGER, TRUSTED, members_of, refused, write_tar


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


def test_members_in_another_order(good, tmp_path):
    members = members_of(good)
    members[1], members[2] = members[2], members[1]
    write_tar(tmp_path / "x", members)
    refused(tmp_path / "x", FormatError, "not the blobs of the manifest in their order")


@pytest.mark.parametrize("number", range(12))
def test_a_member_left_out_or_twice(good, tmp_path, number):
    members = members_of(good)
    if number < len(members):
        write_tar(tmp_path / "less", members[:number] + members[number + 1 :])
        with pytest.raises(ArchiveError):
            archives.read_all(tmp_path / "less")
        write_tar(tmp_path / "more", members[: number + 1] + members[number:])
        with pytest.raises(ArchiveError):
            archives.read_all(tmp_path / "more")


def test_another_blob_beside_the_signed_ones(good, tmp_path):
    members = members_of(good)
    members.insert(1, ("blobs/sha256/" + "0" * 64, b"smuggled"))
    write_tar(tmp_path / "x", members)
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
    members = members_of(good)
    with (tmp_path / "x").open("wb") as file:
        file.write(container.header("oci-layout", size) + members[0][1])
    refused(tmp_path / "x", FormatError, f"oci-layout: {size} bytes announced")


def test_too_many_members(tmp_path):
    write_tar(tmp_path / "x", [("oci-layout", b"")] * (container.MAX_MEMBERS + 1))
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
    members = members_of(good)
    name, data = members[place]
    members[place] = (name, data.ljust(2 << 20, b" "))
    write_tar(tmp_path / "x", members)
    with pytest.raises(FormatError, match=r"bytes where \d+ are allowed"):
        archives.read_all(tmp_path / "x")


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
