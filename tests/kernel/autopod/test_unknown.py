"""A pod that is not there: each command says so, or what it lacks, and leaves nothing of it."""

import pytest

pytestmark = pytest.mark.needs("root", "fuse", "namespaces")

COMMANDS = [
    "autopod checkpoints nopod",
    "autopod checkpoints nopod --json",
    "autopod checkpoints nopod --keep 3",
    "autopod checkpoints nopod --pin 1",
    "autopod checkpoints nopod --from file:///srv --json",
]


def of_the_pod(prefix):
    return [path for path in prefix.rglob("*") if "nopod" in path.name]


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_left_of_a_pod_that_is_not_there(host, command):
    host.run("ckpt", "keygen")
    said = host.run(*command.split(), expect=None)
    assert "error: " in said
    assert of_the_pod(host.prefix) == []


def test_what_is_kept_of_a_pod_that_has_gone_is_listed(host):
    kept = host.prefix / "var/lib/autopod/gone.checkpoints"
    kept.mkdir(parents=True)
    (kept / "000007-20261127T090000Z.pod").touch()
    assert "2026-11-27T09:00:00Z" in host.run("autopod", "checkpoints", "gone")
    (kept / "000007-20261127T090000Z.pod").unlink()
    assert "there is no pod 'gone'" in host.run("autopod", "checkpoints", "gone", expect=1)
