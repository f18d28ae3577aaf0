"""A host dies, or loses its fleet: its pods end there, and live on at one host, and at no other."""

import contextlib
import json
import os
import sqlite3
import time

import pytest

from examples.exim.mail import wait_until
from launcher import enter, pods
from launcher.lock import is_locked
from tests.kernel.autopod.test_fleet import children
from tests.kernel.autopod.test_migrate import count, goes_on, pair, start_counter  # noqa: F401
from tests.kernel.autopod.test_owners import join, owner, write_guard

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.long]

TTL_S = 10


@pytest.fixture(params=["directory"])
def protected(pair, tmp_path, request):  # noqa: F811
    """Hosts a and b, whose pods the other one restarts, from a directory or an object store."""
    stored = request.param == "store"
    for machine in pair:
        write_guard(machine)
        text = f'[fleet]\nfile = "{tmp_path}/fleet.db"\nttl_s = {TTL_S}\n'
        text += f'recover = "{"store" if stored else tmp_path / "shared"}"\n'
        text += f'[archives]\nurl = "file://{tmp_path}/store"\n' if stored else ""
        join(machine, text)
    return pair


def armed(machine):
    return json.loads(machine.run("autopod", "fleet", "--json"))["armed"]


def running(machine):
    pod = pods.find(machine.places, "pod")
    return pod is not None and bool(enter.pids(pod))


def lives(machine):
    """Does it run, and nobody builds it any more?"""
    return running(machine) and not is_locked(machine.places, "pod")


def started(machine, debian_root):
    """Start a pod that counts, and keep a checkpoint of it; return what it had counted."""
    start_counter(machine, debian_root)
    wait_until(lambda: armed(machine) == ["pod"], "the pod is armed")
    before = count(machine)
    machine.run("autopod", "checkpoint", "pod", "--keep", "3")
    goes_on(machine, count(machine) + 10)
    return before


def die(machine):
    """Let a host die: all that would notice, and then its pods."""
    service = machine._service
    [agent] = children(service.pid)
    service.send_signal(19)
    os.kill(agent, 9)
    machine.stop_service(9)
    pods.kill(pods.find(machine.places, "pod"))
    wait_until(lambda: not running(machine), "the pod has ended")


def test_a_host_dies_and_its_pod_lives_on_elsewhere(protected, debian_root, tmp_path):
    a, b = protected
    started(a, debian_root)
    before = count(a)
    a.run("autopod", "checkpoint", "pod", "--keep", "3", "--whole-every", "3")
    _, checkpoint = sorted((tmp_path / "shared/pod.checkpoints").iterdir())
    assert checkpoint.name.endswith("-since-000001.pod")
    die(a)
    wait_until(lambda: running(b), "the pod runs at b", 120)
    goes_on(b, before)
    assert owner(b) == "b"
    wait_until(lambda: armed(b) == ["pod"], "it is armed there")

    a.serve()
    said = a.run("autopod", "restart", "pod", "--replace", "-i", checkpoint, expect=1)
    assert "host b has it" in said
    assert not running(a)

    die(b)  # and the newest checkpoint has been used
    with contextlib.closing(sqlite3.connect(tmp_path / "fleet.db")) as fleet:
        gone = "SELECT count(*) FROM entry WHERE key = '/members/b'"
        wait_until(lambda: fleet.execute(gone).fetchone() == (0,), "b has gone", 120)
    deadline = time.monotonic() + TTL_S
    while time.monotonic() < deadline:
        assert not running(a)
        time.sleep(0.1)
    assert owner(a) == "b"
    a.run("autopod", "fleet", "claim", "pod", "--from", "b")


def test_a_host_that_could_not_restart_a_pod_does_not_take_it(protected, debian_root):
    a, b = protected
    before = started(a, debian_root)
    trusted = list(b.places.trust().glob("*.pem"))
    for key in trusted:
        key.rename(key.with_suffix(".away"))
    die(a)
    told = "pod cannot be restarted at b: "
    wait_until(lambda: told in b.run("autopod", "fleet"), "b has looked", 120)
    assert owner(b) == "a"
    for key in trusted:
        key.with_suffix(".away").rename(key)
    b.stop_service()  # it does not look again for a while
    b.serve()
    wait_until(lambda: running(b), "the pod runs at b", 120)
    goes_on(b, before)
    assert owner(b) == "b"


@pytest.mark.parametrize("protected", ["store"], indirect=True)
def test_a_host_that_has_lost_its_fleet_ends_its_pods_in_time(protected, debian_root, tmp_path):
    a, b = protected
    before = started(a, debian_root)
    with contextlib.closing(sqlite3.connect(tmp_path / "fleet.db", timeout=60)) as fleet:
        fleet.execute("BEGIN IMMEDIATE")  # from now on nobody writes
        wait_until(lambda: not running(a), "the pod has ended", 120)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        [[ends]] = fleet.execute(
            "SELECT ends FROM lease JOIN entry ON lease.id = entry.lease WHERE key = '/members/a'"
        )
        assert now < ends
        assert not running(b)
        fleet.rollback()
    wait_until(lambda: lives(a) or lives(b), "it runs again", 120)
    [there] = [machine for machine in protected if lives(machine)]
    goes_on(there, before)
    assert owner(a) == there.name
    wait_until(lambda: armed(a) == ["pod"], "it is armed")
    assert running(a) != running(b)


def test_a_pod_is_not_in_danger_when_the_service_or_the_pod_is_ended(protected, debian_root):
    a, b = protected
    started(a, debian_root)
    a.stop_service()
    assert armed(b) == []
    assert running(a)
    a.serve()
    wait_until(lambda: armed(b) == ["pod"], "it is armed again")
    [agent] = children(a._service.pid)
    os.kill(agent, 9)
    wait_until(lambda: children(a._service.pid) not in ([], [agent]), "another agent is there")
    a.run("launcher", "kill", "pod")
    wait_until(lambda: armed(b) == [], "it is no longer armed")
    assert not running(a)
    assert not running(b)


def test_a_pod_that_moves_is_armed_where_it_is(protected, debian_root):
    a, b = protected
    started(a, debian_root)
    a.run("autopod", "migrate", "pod", "b")
    wait_until(lambda: armed(a) == ["pod"] and owner(a) == "b", "it is armed at b")
    assert running(b)
    assert not running(a)
