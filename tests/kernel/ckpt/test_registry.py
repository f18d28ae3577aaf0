"""Archives in Debian's docker-registry, by skopeo; and skopeo reads what is there."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt import registry
from ckpt.archive import keys
from ckpt.archive.errors import ArchiveError, UntrustedKey
from ckpt.progress import Silent
from examples.exim.mail import wait_until
from tests import probes
from tests.unit.ckpt import archives

pytestmark = pytest.mark.needs("registry")

SERVER = probes.PROJECT / "build/registry/usr/bin/docker-registry"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A registry; what it keeps lies below `data`."""
    place = tmp_path_factory.mktemp("registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (place / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{place}/data'}}}}\n"
    )
    (place / ".config/containers").mkdir(parents=True)
    (place / ".config/containers/registries.conf").write_text(
        f'[[registry]]\nlocation = "{host}"\ninsecure = true\n'
    )
    program = SERVER if SERVER.exists() else shutil.which("docker-registry")
    with subprocess.Popen(
        [program, "serve", place / "config.yml"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: answers(host), "the registry answers")
            yield host, place
        finally:
            process.kill()


def answers(host):
    try:
        socket.create_connection(host.split(":")).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def host(server, monkeypatch):
    host, place = server
    monkeypatch.setenv("HOME", os.fspath(place))  # where skopeo looks first
    return host


def ckpt(*words, expect=0):
    done = subprocess.run(
        [Path(sys.executable).with_name("ckpt"), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


def skopeo(*words):
    return subprocess.run(["skopeo", *words], check=True, capture_output=True).stdout


def blobs(place):
    return {found.parent.name for found in (place / "data").rglob("data")}


def test_there_and_back(places, host, tmp_path, server, monkeypatch):
    keys.accept(archives.KEY.public_key(), places.trust())
    file, back = tmp_path / "a:b.pod", tmp_path / "back.pod"
    archives.make(file)
    said = ckpt("push", file, f"{host}/pods/mail:first")
    digest = said.strip().partition("@")[2]
    assert ckpt("pull", f"{host}/pods/mail:first", back) == f"{back}: got, and good\n"
    assert back.read_bytes() == file.read_bytes()
    ckpt("pull", f"{host}/pods/mail@{digest}", back)
    assert sorted(os.listdir(tmp_path)) == ["a:b.pod", "back.pod"]

    before = blobs(server[1])
    monkeypatch.setattr(archives.write, "_now", lambda: archives.CREATED)
    archives.make(file)  # at another time, and all else is there already
    ckpt("push", file, f"{host}/pods/mail:second")
    assert (
        len(blobs(server[1]) - before) == 4
    )  # pod and image manifest; signature: manifest, envelope

    found = json.loads(skopeo("inspect", "--raw", f"docker://{host}/pods/mail:first"))
    assert found["artifactType"] == "application/vnd.autopod.pod.v1"
    assert len(found["layers"]) == 6
    name = digest.replace(":", "-")
    signature = json.loads(skopeo("inspect", "--raw", f"docker://{host}/pods/mail:{name}.sig"))
    assert signature["subject"]["digest"] == digest
    assert signature["artifactType"] == "application/vnd.dsse.envelope.v1+json"
    skopeo("copy", f"docker://{host}/pods/mail:first", f"oci:{tmp_path}/copied:x")
    [copied] = json.loads((tmp_path / "copied/index.json").read_text())["manifests"]
    assert copied["digest"] == digest


def test_what_a_registry_sends_is_not_believed(host, tmp_path, server):
    file, back = tmp_path / "a.pod", tmp_path / "back.pod"

    def pull(text, trusted=archives.TRUSTED):
        registry.pull(registry.reference(text), back, trusted, Silent())

    def push(key=archives.KEY, pages=archives.PAGES):
        archives.make(file, key=key, pages=pages)
        trusted = {keys.fingerprint(key.public_key()): key.public_key()}
        return registry.push(file, registry.reference(f"{host}/pods/a:one"), trusted)

    digest = push(archives.STRANGER, archives.page(9))  # another manifest, in the same second too
    with pytest.raises(UntrustedKey, match=f"{host}/pods/a:one: signed by key"):
        pull(f"{host}/pods/a:one")
    with pytest.raises(UntrustedKey):
        registry.push(file, registry.reference(f"{host}/pods/a:two"), archives.TRUSTED)
    stranger = digest.replace(":", "-")
    digest = push()
    other = f"docker://{host}/pods/a:{digest.replace(':', '-')}.sig"
    skopeo("copy", f"docker://{host}/pods/a:{stranger}.sig", other)
    with pytest.raises(ArchiveError, match="signed by key"):
        pull(f"{host}/pods/a:one")
    skopeo("copy", f"docker://{host}/pods/a:one", other)
    with pytest.raises(ArchiveError, match=r"no signature|missing required"):
        pull(f"{host}/pods/a:one")
    push()
    for pages in (server[1] / "data").rglob("data"):  # what it keeps has changed
        if pages.stat().st_size == 416:
            pages.write_bytes(b"x" * 416)
    with pytest.raises(registry.RegistryError, match="skopeo: "):
        pull(f"{host}/pods/a:one")
    with pytest.raises(registry.RegistryError, match="manifest unknown"):
        pull(f"{host}/pods/a:none")
    assert os.listdir(tmp_path) == ["a.pod"]


@pytest.mark.parametrize(
    "text",
    ["", "mail", "mail:x", "host/mail", "host/Mail:x", "h/m:x@sha256:1", "u:p@h/m:x", "-h/../m:x"],
)
def test_what_refers_to_no_archive(text):
    with pytest.raises(ValueError, match="no archive in a registry"):
        registry.reference(text)
