"""The command line: right and wrong input, what it prints, how it ends."""

import json
import os
import subprocess
import sys

import pytest

from ckpt import cli, show
from ckpt.archive.read import open_archive
from launcher.places import Places
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import KEYID


@pytest.fixture
def ckpt(tmp_path, monkeypatch, capsys):
    """Run a command line: exit status, output, errors."""
    monkeypatch.setenv("AUTOPOD_PREFIX", os.fspath(tmp_path / "prefix"))

    def run(*argv):
        try:
            status = cli.main([os.fspath(argument) for argument in argv])
        except SystemExit as e:
            status = e.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def archive(tmp_path, monkeypatch):
    archives.make_canonical(tmp_path / "mail.pod", monkeypatch)
    return tmp_path / "mail.pod"


@pytest.fixture
def public(tmp_path):
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = archives.KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "host.pem").write_bytes(pem)
    return tmp_path / "host.pem"


def test_keygen(ckpt, tmp_path):
    status, out, err = ckpt("keygen")
    assert (status, err) == (0, "")
    fingerprint = out.split()[1]
    assert "made and trusted" in out
    places = Places(tmp_path / "prefix")
    assert (places.keys() / "private.pem").stat().st_mode & 0o777 == 0o600
    assert ckpt("keygen")[1].split()[1] == fingerprint


def test_trust_then_verify(ckpt, archive, public):
    status, out, err = ckpt("verify", archive)
    assert (status, out) == (1, "")
    assert err.splitlines()[0] == (
        f"ckpt: error: {archive}: signed by key {KEYID}, which is not trusted here"
    )
    assert "ckpt trust KEY" in err.splitlines()[1]
    assert ckpt("show", archive)[0] == 1
    assert ckpt("trust", public) == (0, f"key {KEYID} is trusted\n", "")
    assert ckpt("trust", public)[0] == 0
    status, out, err = ckpt("verify", archive)
    assert (status, err) == (0, "")
    assert out == (f"{archive}: good: pod mail of {archives.CREATED}, signed by {KEYID}\n")


def test_verify_finds_what_opening_does_not_look_at(ckpt, archive, public):
    ckpt("trust", public)
    data = bytearray(archive.read_bytes())
    data[512 + 512 + 512 + 5] ^= 1  # in the pages
    archive.write_bytes(data)
    status, out, err = ckpt("verify", archive)
    assert (status, out) == (1, "")
    assert err.startswith(f"ckpt: error: {archive}: pages, frame 0: a frame does not have the dig")
    assert err.splitlines()[1].startswith("ckpt: hint: the archive was changed after it was signed")


@pytest.mark.parametrize("content", ["", "-----BEGIN PUBLIC KEY-----", "x" * 100_000])
def test_trust_something_else(ckpt, tmp_path, content):
    (tmp_path / "key").write_text(content)
    status, out, err = ckpt("trust", tmp_path / "key")
    assert (status, out) == (1, "")
    assert err == f"ckpt: error: {tmp_path / 'key'}: not a public key in PEM\n"
    assert not Places(tmp_path / "prefix").trust().exists()


def test_trust_a_private_key(ckpt, tmp_path):
    ckpt("keygen")
    _, _, err = ckpt("trust", Places(tmp_path / "prefix").keys() / "private.pem")
    assert "this is a private key" in err
    assert "give the public one" in err


def test_missing_files(ckpt, tmp_path):
    ckpt("keygen")
    for verb in ("verify", "show", "trust"):
        status, out, err = ckpt(verb, tmp_path / "none")
        assert (status, out) == (1, "")
        assert str(tmp_path / "none") in err
        assert "No such file" in err


def test_dump_without_a_key(ckpt, tmp_path):
    status, _, err = ckpt("dump", "mail", "-o", tmp_path / "x.pod")
    assert status == 1
    assert "private.pem: No such file or directory" in err
    assert "hint: make the host's key pair with `ckpt keygen`" in err


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("freeze",),
        ("dump", "mail"),
        ("dump", "Mail", "-o", "x"),
        ("dump", "../mail", "-o", "x"),
        ("restore", "mail"),
        ("verify",),
        ("verify", "a", "b"),
        ("show", "--xml", "a"),
    ],
)
def test_usage(ckpt, argv):
    status, out, err = ckpt(*argv)
    assert (status, out) == (2, "")
    error, hint = err.splitlines()
    assert error.startswith("ckpt: error: ")
    assert hint.startswith("ckpt: hint: ckpt ")


@pytest.mark.parametrize("verb", ["dump", "restore", "verify", "show", "check", "keygen", "trust"])
def test_help(ckpt, verb):
    status, out, err = ckpt(verb, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: ckpt {verb}")
    assert len(out.splitlines()) <= 24


def test_show(ckpt, archive, public):
    ckpt("trust", public)
    status, out, err = ckpt("show", archive)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "pod        mail" in lines
    assert f"taken      {archives.CREATED} on Linux 6.1.0-18-amd64" in lines
    assert f"signed by  {KEYID}" in lines
    assert any(line.split() == ["2", "2", "2", "1", "1", "exim4"] for line in lines)
    assert any("(zombie, wait status 51200)" in line for line in lines)
    assert any(line.startswith(f"  layer {archives.LAYER_ID}") for line in lines)
    assert any(line.endswith("  /srv/mail") for line in lines)


def test_show_does_not_let_a_pod_command_the_terminal(ckpt, archive, public):
    ckpt("trust", public)
    _, out, _ = ckpt("show", archive)
    assert "\x1b" not in out
    assert r"path=/etc/\x1b[31mred offset=7" in out


def test_show_json(ckpt, archive, public):
    ckpt("trust", public)
    status, out, _ = ckpt("show", "--json", archive)
    content = json.loads(out)
    assert status == 0
    assert content["manifest"]["pod"] == "mail"
    assert content["pages"] == {"count": 3, "unique": 2}
    assert [process["pid"] for process in content["model"]["processes"]] == [2, 3]
    assert content["model"]["parts"][0]["state"] == {"hostname": "mail"}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes(count, text):
    assert show.size(count) == text


def test_text_of_everything_is_json(archive):
    with open_archive(archive, archives.TRUSTED) as opened:
        assert json.loads(show.as_json(opened))["layers"][0]["id"] == archives.LAYER_ID


def test_a_reader_that_goes_away(archive, public, tmp_path):
    environment = {**os.environ, "AUTOPOD_PREFIX": os.fspath(tmp_path / "prefix")}
    command = [sys.executable, "-m", "ckpt.cli"]
    subprocess.run([*command, "trust", public], env=environment, check=True, capture_output=True)
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [*command, "show", archive],
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, b"")


def test_debug_shows_the_traceback(ckpt, tmp_path):
    with pytest.raises(FileNotFoundError):
        ckpt("--debug", "verify", tmp_path / "none")


def test_what_builds_upon_another(ckpt, archive, public, tmp_path):
    ckpt("keygen")
    ckpt("trust", public)
    since, away, whole = tmp_path / "since.pod", tmp_path / "away", tmp_path / "whole.pod"
    archives.make_since(since, archive, pages=archives.page(5))
    assert f", and so is {archive}, which it builds upon\n" in ckpt("verify", since)[1]
    archive.rename(away)
    for verb, *more in (("verify",), ("show",), ("whole", whole)):
        status, out, err = ckpt(verb, since, *more)
        assert (status, out) == (1, "")
        assert "the archive that it builds upon is not beside it" in err
        assert "hint: put it beside this one, or say where it is: --since FILE" in err
        status, out, err = ckpt(verb, since, *more, "--since", away)
        assert (status, err) == (0, "")
    assert ckpt("diff", since, whole, "--since", away)[0] == 1  # its layer is none
    assert f"of key {KEYID}" not in ckpt("verify", whole)[1]
    assert "pod mail of" in ckpt("verify", whole)[1]
    assert "whole already" in ckpt("whole", whole, tmp_path / "x")[2]
    for made_of in (since, away):
        said = ckpt("whole", since, made_of, "--since", away)[2]
        assert "it would replace what it is made of" in said
