"""A host of a fleet that three members of etcd keep."""

import json
import os

import pytest

from examples.exim.mail import wait_until
from launcher.places import Places
from tests.kernel.autopod.test_drain import service
from tests.kernel.autopod.test_fleet import configure, member  # noqa: F401
from tests.kernel.autopod.test_owners import BIN, GUARD
from tests.kernel.fleet import etcd

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "etcd"), pytest.mark.slow]

TTL_S = 15


@pytest.fixture
def cluster(tmp_path):
    with etcd.running(tmp_path) as made:
        yield made


def test_a_majority_dies_and_comes_back(
    member,  # noqa: F811
    prefix,
    cluster,
    tmp_path,
    debian_root,
    monkeypatch,
):
    """The host ends its pod in time, and takes it up again when its fleet is there again."""
    host, (certificate, key) = member, map(os.fspath, cluster.host)
    settings = {
        "endpoints": cluster.clients,
        "ca": os.fspath(cluster.ca),
        "certificate": certificate,
        "key": key,
        "recover": os.fspath(tmp_path / "shared"),
        "ttl_s": TTL_S,
        "patience_s": 3,
    }
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
    configure(prefix, "[service]\nevery_s = 0\n[fleet]\n", *lines)
    guard = Places(prefix).guard()
    guard.write_text(GUARD.format(BIN))
    guard.chmod(0o755)

    def fleet():
        return json.loads(host.run("autopod", "fleet", "--json"))

    with service(prefix, monkeypatch):
        host.run("autopod", "add", "idle", "--base", debian_root)
        host.run("autopod", "addproc", "idle", "/bin/sleep", "1000")
        wait_until(lambda: fleet()["armed"] == ["idle"], "the pod is armed")
        assert fleet()["pods"]["idle"]["host"] == "first"
        host.run("autopod", "checkpoint", "idle", "--keep", "1")
        before = host.processes("idle").keys()

        cluster.kill(0)
        cluster.kill(1)
        wait_until(lambda: not host.pods()["idle"]["processes"], "the pod is ended", 120)
        said = host.run("autopod", "addproc", "idle", "/bin/true", expect=1)
        assert "is not to be started here: etcd at" in said
        assert "a majority" in said

        cluster.start(0)
        cluster.start(1)
        wait_until(lambda: host.pods()["idle"]["processes"], "the pod runs again", 120)
        wait_until(lambda: fleet()["armed"] == ["idle"], "the pod is armed again")
        assert host.processes("idle").keys() == before
        assert [one["name"] for one in fleet()["members"]] == ["first"]
    assert fleet()["armed"] == []
