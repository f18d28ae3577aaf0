"""Keys: who may have them, what is accepted as one."""

import hashlib
import os
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from ckpt.archive import keys, pem
from ckpt.archive.errors import KeyFileError


@pytest.fixture
def pair(tmp_path):
    keys.ensure(tmp_path / "keys", tmp_path / "trust")
    return tmp_path / "keys"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_pair_is_made_once_and_trusted(tmp_path):
    first, new = keys.ensure(tmp_path / "keys", tmp_path / "trust")
    assert new
    assert keys.ensure(tmp_path / "keys", tmp_path / "trust") == (first, False)
    assert list(keys.load_trusted(tmp_path / "trust")) == [first]
    assert mode(tmp_path / "keys/private.pem") == 0o600
    assert mode(tmp_path / "keys/public.pem") == 0o644
    private = keys.load_private(tmp_path / "keys/private.pem")
    assert keys.fingerprint(private.public_key()) == first
    assert keys.fingerprint(keys.load_public(tmp_path / "keys/public.pem")) == first
    assert sorted(os.listdir(tmp_path / "keys")) == ["private.pem", "public.pem"]


def test_a_restrictive_umask_does_not_hide_the_public_key(tmp_path):
    before = os.umask(0o077)
    try:
        keys.ensure(tmp_path / "keys", tmp_path / "trust")
    finally:
        os.umask(before)
    assert mode(tmp_path / "keys/public.pem") == 0o644


def test_the_fingerprint_is_what_openssl_computes(pair):
    der = subprocess.check_output(
        ["openssl", "pkey", "-pubin", "-in", pair / "public.pem", "-outform", "DER"]
    )
    public = keys.load_public(pair / "public.pem")
    assert keys.fingerprint(public) == hashlib.sha256(der).hexdigest()


def test_a_key_that_another_has_made_meanwhile_is_kept(tmp_path, monkeypatch):
    save = pem.save_pair

    def overtaken(key, *paths):
        monkeypatch.setattr(pem, "save_pair", save)
        other.append(keys.ensure(tmp_path / "keys", tmp_path / "trust")[0])
        save(key, *paths)

    other = []
    monkeypatch.setattr(pem, "save_pair", overtaken)
    assert keys.ensure(tmp_path / "keys", tmp_path / "trust") == (other[0], False)
    assert list(keys.load_trusted(tmp_path / "trust")) == other


def test_whoever_ends_while_making_a_key_leaves_none_that_is_not_trusted(tmp_path, monkeypatch):
    def end(key, private, _public):
        private.parent.mkdir()
        pem._create(private, b"", 0o600)
        ended.append(keys.fingerprint(key.public_key()))
        raise KeyboardInterrupt

    ended = []
    monkeypatch.setattr(pem, "save_pair", end)
    with pytest.raises(KeyboardInterrupt):
        keys.ensure(tmp_path / "keys", tmp_path / "trust")
    assert list(keys.load_trusted(tmp_path / "trust")) == ended


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o601])
def test_a_private_key_that_others_could_read(pair, bits):
    (pair / "private.pem").chmod(bits)
    with pytest.raises(KeyFileError, match=r"private\.pem: mode 06.. lets others"):
        keys.load_private(pair / "private.pem")


@pytest.mark.parametrize("bits", [0o664, 0o646])
def test_a_trusted_key_that_others_could_write(pair, bits):
    trust = pair.parent / "trust"
    (path,) = trust.iterdir()
    path.chmod(bits)
    with pytest.raises(KeyFileError, match="lets others"):
        keys.load_trusted(trust)


def test_a_trust_directory_that_others_could_write(pair):
    (pair.parent / "trust").chmod(0o777)
    with pytest.raises(KeyFileError, match=r"trust: mode 0777 lets others"):
        keys.load_trusted(pair.parent / "trust")


@pytest.mark.needs("root")
def test_a_key_of_somebody_else(pair):
    os.chown(pair / "private.pem", 65534, 65534)
    with pytest.raises(KeyFileError, match="belongs to user 65534"):
        keys.load_private(pair / "private.pem")


def test_no_key(tmp_path):
    with pytest.raises(KeyFileError, match=r"none\.pem: No such file") as caught:
        keys.load_private(tmp_path / "none.pem")
    assert "ckpt keygen" in caught.value.hint
    assert keys.load_trusted(tmp_path / "none") == {}


def _private_pem(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def _public_pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"\xff\xfe\0",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        _private_pem(ec.generate_private_key(ec.SECP256R1())),
        _private_pem(rsa.generate_private_key(65537, 2048)),
        _private_pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret")),
        _public_pem(Ed25519PrivateKey.generate()),
    ],
)
def test_what_is_no_private_key(tmp_path, pem):
    path = tmp_path / "key.pem"
    path.touch(0o600)
    path.write_bytes(pem)
    with pytest.raises(KeyFileError, match=r"key\.pem: not an? "):
        keys.load_private(path)


@pytest.mark.parametrize(
    ("pem", "match"),
    [
        (b"", "not a public key"),
        (b"ssh-ed25519 AAAA root@host", "not a public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
        (_public_pem(ec.generate_private_key(ec.SECP256R1())), "not an Ed25519 key"),
        (_private_pem(Ed25519PrivateKey.generate()), "this is a private key"),
    ],
)
def test_what_is_no_public_key(tmp_path, pem, match):
    (tmp_path / "key.pem").write_bytes(pem)
    with pytest.raises(KeyFileError, match=match):
        keys.load_public(tmp_path / "key.pem")
    with pytest.raises(KeyFileError, match=match):
        keys.load_trusted(tmp_path)
