"""Kept checkpoints in an object store: a real server, which fails, refuses, and is lied to."""

import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from autopod import checkpoints, objects
from ckpt.archive import keys
from launcher.places import Places
from tests.unit.autopod import commands, s3
from tests.unit.ckpt import archives

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIANOBODY",
    "AWS_SECRET_ACCESS_KEY": s3.SECRET,
    "AWS_REGION": "us-east-1",
}
LARGE = os.urandom(9 << 20)  # is sent in two parts


@pytest.fixture(scope="module")
def server():
    with s3.serving() as port:
        yield port


@pytest.fixture(scope="module")
def shell():
    with commands.shell(CREDENTIALS) as shell:
        yield shell


class Host:
    """An instance whose checkpoints go to the store."""

    def __init__(self, shell, prefix, url, port):
        self.shell = shell
        self.places = Places(prefix)
        keys.accept(archives.KEY.public_key(), self.places.trust())
        self.url = url
        self.configure(port)

    def configure(self, port):
        text = f'[archives]\nurl = "{self.url}"\nendpoint = "http://127.0.0.1:{port}"\n'
        (self.places.prefix / "etc/autopod/autopod.toml").write_text(text)

    def take(self, **more):
        path = checkpoints.next_path(self.places, "mail")
        archives.make(path, **more)
        return path

    def run(self, *words, expect=0):
        environment = {"AUTOPOD_PREFIX": os.fspath(self.places.prefix)}
        status, said = self.shell.run(environment, words)
        assert status == expect, said
        assert s3.SECRET not in said
        assert "Traceback" not in said
        return said

    def copy(self, keep=9, expect=0):
        return self.run("checkpoints", "mail", "--keep", str(keep), expect=expect)

    def there(self):
        rows = json.loads(self.run("checkpoints", "mail", "--from", "store", "--json"))
        return [row["checkpoint"] for row in rows]

    def numbers(self):
        return [one.number for one in checkpoints.known(self.places, "mail")]

    def files(self):
        return sorted(os.listdir(checkpoints.directory(self.places, "mail")))


@pytest.fixture
def hosts(shell, server, tmp_path, request):
    """Hosts a and b, with a place of their own in the store."""
    url = f"s3://pods/{request.node.name.replace('[', '-').replace(']', '')}"
    return Host(shell, tmp_path / "a", url, server), Host(shell, tmp_path / "b", url, server)


def test_what_needs_another_one_is_not_copied(hosts):
    a, _ = hosts
    base = a.take()
    [one] = checkpoints.known(a.places, "mail")
    archives.make_since(checkpoints.next_path(a.places, "mail", one), base)
    assert "copied checkpoint 1" in a.copy()
    assert a.copy(keep=1) == ""
    assert (a.numbers(), a.there()) == ([1, 2], [1])


def test_another_host_has_what_was_kept(hosts):
    a, b = hosts
    a.take(pages=LARGE)
    checkpoints.pin(a.places, "mail", 1)
    a.take()
    said = a.copy()
    assert said.index("copied checkpoint 2") < said.index("copied checkpoint 1")
    assert a.copy() == ""  # a second time there is nothing to do
    newest = a.take()
    assert a.copy(keep=1).count("deleted checkpoint 2") == 2
    assert b.there() == a.there() == [1, 3]

    got = b.run("checkpoints", "mail", "--from", a.url, "--get", "3").strip()
    assert Path(got).name == newest.name
    assert Path(got).read_bytes() == newest.read_bytes()
    b.run("checkpoints", "mail", "--from", "store", "--get", "1")
    assert b.numbers() == [1, 3]
    a.run("checkpoints", "mail", "--from", "store", "--unpin", "1")
    assert [
        row["pinned"]
        for row in json.loads(a.run("checkpoints", "mail", "--from", "store", "--json"))
    ] == [False, False]
    checkpoints.pin(a.places, "mail", 1, pinned=False)
    a.copy(keep=1)
    assert a.there() == [3]


def test_hosts_that_a_pod_goes_to_and_fro_between(hosts, monkeypatch):
    a, b = hosts
    now = datetime.fromisoformat(archives.CREATED).timestamp()

    def take(host, hour):
        monkeypatch.setattr(checkpoints.time, "time", lambda: now + hour * 3600)
        return host.take()

    take(a, 1), take(a, 2)
    a.copy()
    take(b, 3)
    assert "checkpoint 1 is 3 now" in b.copy()
    take(a, 4)
    assert "checkpoint 3 is 4 now" in a.copy()
    assert (a.numbers(), b.numbers(), a.there()) == ([1, 2, 4], [3], [1, 2, 3, 4])
    take(a, 5)  # and is not copied before the pod is elsewhere
    take(b, 6), take(b, 7)
    assert "checkpoint 5 is 6 now" in b.copy()
    assert "checkpoint 5 is not copied" in a.copy()
    assert a.there() == [1, 2, 3, 4, 5, 6]


def test_a_server_that_is_down_or_refuses(hosts, server):
    a, _ = hosts
    a.take()
    a.configure(9)  # where nobody listens
    said = a.copy(expect=1)
    assert "error sending request" in said
    assert "kept on this host" in said
    a.configure(server)
    s3.ask(server, "POST", "/moto-api/reset-auth", b"0")
    try:
        assert "InvalidAccessKeyId" in a.copy(expect=1)
    finally:
        s3.ask(server, "POST", "/moto-api/reset-auth", b"inf")
    assert a.numbers() == [1]
    a.copy()
    assert a.there() == [1]


def test_an_upload_that_is_broken_off(hosts, server):
    a, _ = hosts
    a.take(pages=LARGE)
    with s3.breaking_off(server, "partNumber=2") as port:
        a.configure(port)
        a.copy(expect=1)
        assert a.there() == []
    a.configure(server)
    assert b"<Upload>" not in s3.ask(server, "GET", "/pods?uploads")
    a.copy()
    assert a.there() == [1]


UPLOAD = """
import os, signal, sys
from pathlib import Path
from autopod.objects import Objects
from ckpt.progress import Silent

class Told(Silent):
    def advance(self, done_bytes):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))

Objects(sys.argv[1], sys.argv[2]).put("large", Path(sys.argv[4]), Told())
"""


@pytest.mark.parametrize("told", ["SIGTERM", "SIGINT"])
def test_an_upload_that_is_told_to_end(server, tmp_path, told):
    (tmp_path / "large").write_bytes(LARGE)
    argv = ["s3://pods/ended", f"http://127.0.0.1:{server}", told, tmp_path / "large"]
    environment = {**os.environ, **CREDENTIALS}
    done = subprocess.run([sys.executable, "-c", UPLOAD, *argv], env=environment, check=False)
    assert done.returncode == -signal.SIGINT
    assert b"<Upload>" not in s3.ask(server, "GET", "/pods?uploads")


def test_what_the_store_says_is_not_believed(hosts, server):
    a, b = hosts
    path, place = a.take(), a.url.removeprefix("s3:/")

    def lie(name, content):
        s3.ask(server, "PUT", f"{place}/mail/{name}", content)

    def refused(number, why):
        said = b.run("checkpoints", "mail", "--from", "store", "--get", number, expect=1)
        assert why in said
        assert f"{a.url}/mail/" in said
        assert b.files() == []

    whole = path.read_bytes()
    lie(path.name, whole[:-1000])
    refused("1", "file ends at byte")
    changed = bytearray(whole)
    changed[1541] ^= 1
    lie(path.name, bytes(changed))
    refused("1", "does not have")
    assert "copied checkpoint 1" not in a.copy()  # its size is that of ours
    lie(path.name, whole[:-1000])
    assert "copied checkpoint 1" in a.copy()  # this can be told, and is replaced
    lie("000002-20260102T030405Z.pod", whole)
    refused("2", "it was taken at")
    archives.make(path.with_name("other"), key=archives.STRANGER)
    lie(f"000003{path.name[6:]}", path.with_name("other").read_bytes())
    refused("3", "signed by key")
    assert b.run("restart", "mail", "--at", "1s", "--from", "store", expect=1) == ""
    assert b.files() == []  # another process has told why
    model = archives.msgspec.structs.replace(archives.MODEL, name="web")
    archives.make(path.with_name("other"), model=model)
    lie(f"000004{path.name[6:]}", path.with_name("other").read_bytes())
    refused("4", "of pod 'web'")
    for name in ("999999999-x.pod", "000009-20261301T000000Z.pod", "a/000009.pod"):
        lie(name, b"")
    assert b.there() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "url",
    [
        "pods",
        "http://pods/x",
        "s3://",
        "s3:///pods",
        "s3://me:secret@pods",
        "s3://pods?x",
        "file://x/y",
        "file:",
    ],
)
def test_what_is_no_store(url):
    with pytest.raises(ValueError, match=r"use s3://|no user") as refused:
        objects.check_url(url)
    assert "secret" not in str(refused.value)


def test_amazons_files(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for variable, name in (
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        ("AWS_CONFIG_FILE", "config"),
    ):
        monkeypatch.setenv(variable, os.fspath(tmp_path / name))
    assert objects._s3_config(None) == {}
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = B%\n[pods]\n"
        "aws_access_key_id = C\naws_secret_access_key = D\n"
    )
    (tmp_path / "config").write_text(
        "[default]\nregion = r1\n[profile pods]\nregion = r2\nendpoint_url = https://e\n"
    )
    first = {"access_key_id": "A", "secret_access_key": "B%", "region": "r1"}
    assert objects._s3_config(None) == first
    monkeypatch.setenv("AWS_PROFILE", "pods")
    second = {"access_key_id": "C", "secret_access_key": "D", "region": "r2"}
    assert objects._s3_config(None) == {**second, "endpoint": "https://e"}
    assert objects._s3_config("https://f") == {**second, "endpoint": "https://f"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "r3")
    assert objects._s3_config(None) == {"region": "r3", "endpoint": "https://e"}
    (tmp_path / "config").write_text("secret = x\n")
    with pytest.raises(objects.StoreFailed, match="cannot be understood") as failed:
        objects._s3_config(None)
    assert "secret" not in str(failed.value)
