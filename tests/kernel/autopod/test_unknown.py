"""A pod that is not there: each command says so, or what it lacks, and leaves nothing of it."""

import pytest

pytestmark = pytest.mark.needs("root", "fuse", "namespaces")

COMMANDS = [
    "launcher start nopod /bin/true",
    "launcher run nopod /bin/true",
    "launcher exec nopod /bin/true",
    "launcher attach nopod",
    "launcher serve nopod",
    "launcher stop nopod",
    "launcher kill nopod",
    "launcher ps nopod",
    "launcher logs nopod",
    "launcher probe nopod",
    "autopod addproc nopod /bin/true",
    "autopod add nopod --base /nowhere",
    "autopod checkpoint nopod -o nopod.pod",
    "autopod checkpoint nopod --keep 3",
    "autopod checkpoints nopod",
    "autopod checkpoints nopod --json",
    "autopod checkpoints nopod --keep 3",
    "autopod checkpoints nopod --pin 1",
    "autopod checkpoints nopod --from file:///srv --json",
    "autopod restart nopod -i nopod.pod",
    "autopod restart nopod --at 1h",
    "autopod migrate nopod elsewhere",
    "autopod rm nopod",
    "autopod relay end nopod",
    "ckpt check nopod",
    "ckpt dump nopod -o nopod.pod",
    "ckpt restore nopod -i nopod.pod",
    "stackfs mount nopod",
    "stackfs umount nopod",
    "stackfs upgrade nopod",
    "stackfs stats nopod",
    "stackfs snapshot nopod",
    "stackfs diff nopod",
    "stackfs flatten nopod",
    "stackfs rollback nopod --to 0",
    "stackfs check nopod",
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
