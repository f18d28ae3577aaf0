"""Encrypted archives: read by recipients, verified by all, refused under another signature."""

import base64
import hashlib
import json
import os
import tarfile

import msgspec
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ckpt import cli, show
from ckpt.archive import crypt, recipients, schema
from ckpt.archive.errors import ArchiveError, FormatError, NotARecipient, UntrustedKey
from ckpt.archive.read import open_archive
from ckpt.progress import Silent
from launcher.places import Places
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import KEYID, STRANGER, TRUSTED, Loose
from tests.unit.ckpt.test_format import VECTORS, trusted

ALICE, BOB, EVE = (X25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "sealed.pod"
    archives.make(path, recipients=[ALICE.public_key(), BOB.public_key()])
    return path


def read(path, *identities):
    with open_archive(path, TRUSTED, identities) as archive:
        archive.verify(Silent())
        layers = [b"".join(archive.layer_tar(layer)) for layer in archive.layers]
        return archive.model(), archive.config(), archive.pages.read(0, 3), layers


def test_recipients_read_it(sealed):
    whole = (archives.MODEL, archives.CONFIG, archives.PAGES, [archives.LAYER])
    assert read(sealed, EVE, BOB) == read(sealed, ALICE) == whole


def test_nobody_else_reads_it(sealed):
    for identities in ((), (EVE,)):
        with pytest.raises(NotARecipient, match=r"sealed\.pod: encrypted"):
            read(sealed, *identities)
    data = sealed.read_bytes()
    for secret in (archives.CONFIG, archives.LAYER, b"hostname", b"exim4"):
        assert secret not in data
    for page in (archives.page(1), archives.page(2)):
        assert hashlib.sha256(page).digest() not in data


def test_the_same_input_looks_different(sealed, tmp_path):
    first = Loose(sealed)
    archives.make(sealed, recipients=[ALICE.public_key()])
    again = {data for _, data in Loose(sealed).blobs}
    assert not again & {data for _, data in first.blobs}


def test_all_can_verify_it(sealed):
    data = bytearray(sealed.read_bytes())
    with open_archive(sealed, TRUSTED, None) as archive:
        assert archive.is_locked
        archive.verify(Silent())
    with pytest.raises(UntrustedKey):
        open_archive(sealed, {}, [ALICE])
    for at in range(512, len(data), 97):
        sealed.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with (
            pytest.raises(ArchiveError),
            open_archive(sealed, TRUSTED, None) as archive,
        ):
            archive.verify(Silent())


def test_what_another_signs_does_not_open(sealed, tmp_path):
    """Neither a stranger's signature over the same blobs, nor his name in place of the signer's."""
    Loose(sealed).write(tmp_path / "x", STRANGER)
    theirs = {**TRUSTED, archives.keys.fingerprint(STRANGER.public_key()): STRANGER.public_key()}
    with open_archive(tmp_path / "x", theirs, None) as archive:
        archive.verify(Silent())
    with pytest.raises(NotARecipient):
        open_archive(tmp_path / "x", theirs, [ALICE])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scheme": "rot13"}, "rot13"),
        ({"recipients": []}, "0 recipients"),
        ({"recipients": ["A" * 108] * 65}, "65 recipients"),
        ({"recipients": ["!"]}, "a recipient in the manifest"),
        ({"recipients": ["AAAA"]}, "has not 80 bytes"),
        ({"recipients": [base64.b64encode(bytes(80)).decode()]}, "encrypted"),
        ({"recipients": 7}, "pod manifest"),
    ],
)
def test_what_a_manifest_cannot_say(sealed, tmp_path, change, match):
    """Zeros as a public key are a point of small order, of which X25519 makes nothing."""
    loose = Loose(sealed)
    loose.manifest["encryption"].update(change)
    loose.write(tmp_path / "x")
    with pytest.raises(ArchiveError, match=match):
        read(tmp_path / "x", ALICE)


def test_the_feature_and_the_field_go_together(sealed, tmp_path):
    for drop in (lambda m: m.pop("encryption"), lambda m: m["requires"].clear()):
        loose = Loose(sealed)
        drop(loose.manifest)
        loose.write(tmp_path / "x")
        with pytest.raises(FormatError, match="encrypted"):
            read(tmp_path / "x", ALICE)


@pytest.mark.parametrize("media_type", sorted(schema.SINGLE_TYPES))
def test_a_blob_in_the_place_of_another(sealed, tmp_path, media_type):
    """Signed, by a trusted key: what does not decrypt in its place is refused all the same."""
    loose = Loose(sealed)
    loose.write_raw(tmp_path / "x", media_type + schema.ENCRYPTED_SUFFIX, lambda data: data[::-1])
    with pytest.raises(FormatError):
        read(tmp_path / "x", ALICE)


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1])
def test_sizes(size):
    data, cipher = bytes(size), crypt.BlobCipher(bytes(32))
    stored = cipher.seal_all(data)
    assert len(stored) == crypt.sealed_size(size)
    assert cipher.open_all(stored) == data
    with pytest.raises(FormatError):
        cipher.open_all(stored[:-1])


# --- the golden archive ------------------------------------------------------------------


def test_the_golden_archive():
    identity = recipients.load_identities(VECTORS, None)
    assert identity == []
    key = X25519PrivateKey.from_private_bytes(_golden_identity())
    with open_archive(VECTORS / "sealed.pod", trusted(), [key]) as archive:
        archive.verify(Silent())
        shown = json.loads(show.as_json(archive))
        plain = json.loads((VECTORS / "tiny.json").read_text())
        for content in ("model", "config", "pages", "signer"):
            assert shown[content] == plain[content]


def _golden_identity():
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = (VECTORS / "sealed-identity.pem").read_bytes()
    return load_pem_private_key(pem, None).private_bytes_raw()


def test_the_golden_archive_by_the_document_alone():
    with tarfile.open(VECTORS / "sealed.pod") as tar:
        blobs = {"sha256:" + m.name[-64:]: tar.extractfile(m).read() for m in tar.getmembers()}
        index = json.load(tar.extractfile("index.json"))
    image = json.loads(blobs[index["manifests"][0]["digest"]])
    envelope = json.loads(blobs[index["manifests"][1]["digest"]])
    manifest = json.loads(blobs[image["config"]["digest"]])
    stanza = base64.b64decode(manifest["encryption"]["recipients"][0])

    def hkdf(secret, salt, info):
        return HKDF(SHA256(), 32, salt, info).derive(secret)

    def opened(key, number, data):
        return ChaCha20Poly1305(key).decrypt(number.to_bytes(12, "big"), data, None)

    identity = X25519PrivateKey.from_private_bytes(_golden_identity())
    shared = identity.exchange(X25519PublicKey.from_public_bytes(stanza[:32]))
    signer = bytes.fromhex(envelope["signatures"][0]["keyid"])
    salt = stanza[:32] + identity.public_key().public_bytes_raw()
    wrapping = hkdf(shared, salt, b"autopod.pod.v1 recipient\0" + signer)
    file_key = opened(wrapping, 0, stanza[32:])
    contents = {}
    for place, blob in enumerate(image["layers"]):
        key = hkdf(file_key, None, b"autopod.pod.v1 blob\0" + place.to_bytes(4, "big"))
        contents[blob["mediaType"]] = opened(key, 0, blobs[blob["digest"]])
    assert contents[schema.POD_CONFIG_TYPE + "+encrypted"] == archives.CONFIG
    pages = zstandard.ZstdDecompressor().decompress(contents[schema.PAGES_TYPE + "+encrypted"])
    assert pages == archives.PAGES[:8192]


# --- the command -------------------------------------------------------------------------


def test_the_commands(sealed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUTOPOD_PREFIX", os.fspath(tmp_path))
    places = Places(tmp_path)
    archives.keys.accept(archives.KEY.public_key(), places.trust())

    def ckpt(*argv):
        return cli.main([os.fspath(word) for word in argv]), *capsys.readouterr()

    assert ckpt("verify", sealed)[0] == 0
    status, _, err = ckpt("show", sealed)
    assert (status, "--identity KEY" in err) == (1, True)

    status, out, _ = ckpt("keygen", "--encryption")
    assert (status, "made" in out) == (0, True)
    assert ckpt("keygen", "--encryption")[1].split()[1] == out.split()[1]
    assert (places.keys() / "identity.pem").stat().st_mode & 0o777 == 0o600
    own = recipients.load_recipients(places.recipients())
    archives.make(sealed, recipients=own)
    assert "encrypted  recipients: 1" in ckpt("show", sealed)[1]
    (places.keys() / "identity.pem").rename(tmp_path / "key.pem")
    assert ckpt("show", sealed)[0] == 1
    assert ckpt("show", sealed, "--identity", tmp_path / "key.pem")[0] == 0
    assert "this is a private key" in ckpt("recipient", tmp_path / "key.pem")[2]
    status, out, _ = ckpt("recipient", places.keys() / "recipient.pem")
    assert (status, "cannot restart" in out) == (0, True)
    (tmp_path / "signer.pem").write_bytes((places.trust() / f"{KEYID[:16]}.pem").read_bytes())
    assert "not an X25519 key" in ckpt("recipient", tmp_path / "signer.pem")[2]
    assert msgspec.json.decode(
        ckpt("show", "--json", sealed, "--identity", tmp_path / "key.pem")[1]
    )
