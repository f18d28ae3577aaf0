"""Hosts of a fleet as an administrator sees them: members, slots, and drains that wait for one."""

import json
import os
import signal
import subprocess

import pytest

from autopod.status import store
from examples.exim.mail import wait_until
from launcher.places import Places
from tests.kernel.autopod.conftest import BIN
from tests.kernel.autopod.repository import ACT, NEW, install, new_kernel
from tests.kernel.autopod.test_drain import INSTALL, REBOOT, cycle, last, script, service

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

UNREACHABLE = '\n[fleet]\nendpoints = ["http://127.0.0.1:9"]\npatience_s = 1\n'
FLEET = '\n[fleet]\nfile = "{}/fleet.db"\nttl_s = 5\n'


@pytest.fixture
def member(host, prefix):
    """A host with a name and an idle pod; its policy is to be written."""
    host.run("autopod", "host", "init", "--name", "first", "--address", "192.0.2.1")
    return host


def configure(prefix, *texts):
    policy = prefix / "etc/autopod/autopod.toml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text("".join(texts))


def fleet(host):
    return json.loads(host.run("autopod", "fleet", "--json"))


def slot(what, expect=0, **environment):
    argv = [BIN / "python", "-m", "autopod.fleet.slot", what, "default"]
    env = {**os.environ, **environment}
    run = subprocess.run(argv, stderr=subprocess.PIPE, env=env, check=False)
    assert run.returncode == expect
    return run.stderr.decode()


@pytest.fixture
def other(tmp_path):
    """Another host of the fleet, which does no more than take slots."""
    return {"AUTOPOD_PREFIX": os.fspath(tmp_path)}


def join(prefix, other):
    """Let the other host belong to the same fleet."""
    env = {**os.environ, **other}
    argv = [BIN / "autopod", "host", "init", "--name", "second", "--address", "192.0.2.2"]
    subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)
    configure(type(prefix)(other["AUTOPOD_PREFIX"]), FLEET.format(prefix))


def holders(host):
    return [one["id"] for one in fleet(host)["slots"].get("default", [])]


def drain(host, *arguments, expect=0):
    said = host.run("autopod", "drain", "--no-install", "--json", *arguments, expect=expect)
    return json.loads(said)


def test_no_pod_is_touched_without_a_slot(member, prefix, other, debian_root):
    host = member
    host.run("autopod", "add", "idle", "--base", debian_root)
    host.run("autopod", "addproc", "idle", "/bin/sleep", "1000")
    before = host.processes("idle")

    configure(prefix, UNREACHABLE)
    for arguments in (["--dry-run"], []):
        said = drain(host, *arguments, expect=1)
        assert "etcd at http://127.0.0.1:9" in said["against"][0]
        assert host.processes("idle").keys() == before.keys()

    configure(prefix, FLEET.format(prefix))
    join(prefix, other)
    slot("take", **other)
    for arguments in (["--dry-run"], []):
        said = drain(host, *arguments, expect=1)
        assert "no reboot slot of group 'default' is free, of 1: taken by second" in str(said)
        assert host.processes("idle").keys() == before.keys()
    assert last(prefix).phase == "put off"
    assert holders(host) == ["second"]
    host.run("autopod", "drain", "--undo", expect=1)
    host.run("autopod", "fleet", "release", "first", expect=1)
    host.run("autopod", "fleet", "release", "second")

    assert drain(host)["pods"][0]["place"] == "archive"
    assert holders(host) == ["first"]
    assert "taken by first" in slot("take", expect=1, **other)
    host.run("autopod", "drain", "--undo")
    assert host.processes("idle").keys() == before.keys()
    assert (last(prefix).slot, holders(host)) == (None, [])


def test_a_slot_lasts_through_the_reboot_and_comes_back_after_it(
    member, prefix, other, archive, monkeypatch
):
    host, policy = member, (prefix / "etc/autopod/autopod.toml").read_text()
    configure(prefix, policy, ACT.format(prefix), FLEET.format(prefix))
    join(prefix, other)
    (prefix / "quick").touch()
    script(prefix / "install", INSTALL.format(prefix))
    script(prefix / "reboot", REBOOT.format(prefix, "/bin/true #", NEW))
    new_kernel(archive)
    install(prefix / "status.new", archive, NEW, "6.1.158-1")
    archive.publish()

    slot("take", **other)
    run = subprocess.run(cycle(), stderr=subprocess.PIPE, check=True)
    assert b"not now: no reboot slot" in run.stderr
    assert (last(prefix).phase, last(prefix).failed) == ("put off", None)
    slot("give", **other)

    subprocess.run(cycle(), check=True)
    assert (last(prefix).phase, holders(host)) == ("rebooting", ["first"])
    assert "taken by first" in slot("take", expect=1, **other)

    with service(prefix, monkeypatch):
        assert (last(prefix).phase, last(prefix).failed) == ("done", None)
        assert holders(host) == []
    slot("take", **other)


def test_a_slot_that_could_not_be_given_back_is_later(member, prefix, monkeypatch):
    """While the fleet was not to be reached; and a host that is not well keeps it."""
    host = member
    configure(prefix, FLEET.format(prefix))
    drain(host)
    configure(prefix, UNREACHABLE)
    drain(host, "--undo")
    assert last(prefix).slot == "default"
    configure(prefix, "[service]\nevery_s = 0\n", FLEET.format(prefix))
    assert holders(host) == ["first"]
    with service(prefix, monkeypatch):
        wait_until(lambda: not holders(host), "the slot is given back")
        wait_until(lambda: last(prefix).slot is None, "that is written down")

    drain(host)
    with store.opened(Places(prefix)) as history:
        drained = history.last_drain()
        history.save(type(drained)(**{
            **{name: getattr(drained, name) for name in drained.__struct_fields__},
            "phase": "failed", "failed": "the wrong kernel", "well": False,
        }))  # fmt: skip
    with service(prefix, monkeypatch):
        wait_until(lambda: fleet(host)["members"], "the host is there")
    assert holders(host) == ["first"]
    drain(host, "--clear")
    assert (last(prefix).slot, holders(host)) == (None, [])


def test_the_service_keeps_its_host_in_the_fleet(member, prefix, monkeypatch):
    host = member
    configure(prefix, "[service]\nevery_s = 0\n", FLEET.format(prefix))
    with service(prefix, monkeypatch) as process:
        wait_until(lambda: fleet(host)["members"], "the host is there")
        [one] = fleet(host)["members"]
        assert (one["name"], one["address"], one["pods"]) == ("first", "192.0.2.1:7463", [])
        assert one["kernel"] == os.uname().release
        assert one["memory_free"] > 0
        assert "first joins at 192.0.2.1:7463" in host.run("autopod", "fleet")
        [agent] = children(process.pid)
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: children(process.pid) not in ([], [agent]), "another one is there")
    wait_until(lambda: not fleet(host)["members"], "it has gone with its lease")


def test_a_fleet_that_is_not_there_does_not_end_the_service(member, prefix, monkeypatch):
    configure(prefix, "[service]\nevery_s = 0\n", UNREACHABLE)
    with service(prefix, monkeypatch) as process:
        wait_until(lambda: children(process.pid), "the agent is there")
        assert process.poll() is None
    said = member.run("autopod", "fleet", expect=1)
    assert "etcd at http://127.0.0.1:9" in said
    assert "hint: is a majority of its members running" in said


def test_the_agent_ends_with_a_service_that_is_killed(member, prefix):
    configure(prefix, "[service]\nevery_s = 0\n", UNREACHABLE)
    with subprocess.Popen([BIN / "autopod", "statusd"], stdin=subprocess.DEVNULL) as process:
        wait_until(lambda: children(process.pid), "the agent is there")
        [agent] = children(process.pid)
        process.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{agent}"), "the agent has ended")


def test_a_host_of_no_fleet(member):
    assert "belongs to no fleet" in member.run("autopod", "fleet", expect=1)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        direct = set(map(int, file.read().split()))
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children") as file:
                direct |= set(map(int, file.read().split()))
        except FileNotFoundError:
            continue
    return [one for one in direct if b"autopod.fleet.agent" in cmdline(one)]


def cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
