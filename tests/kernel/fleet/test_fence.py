"""A host's pods are frozen, go on, and are killed, by the time that its lease has left."""

import signal
import subprocess

import pytest

from autopod.fleet import fence
from autopod.fleet.fence import Fence
from launcher import cgroups, pods
from launcher.pods import ClockOffsets, Pod

pytestmark = pytest.mark.needs("root")

TTL_S = 60


@pytest.fixture
def said():
    return []


@pytest.fixture
def pod(places, monkeypatch):
    """A process in control groups as a pod has them, found as pod `mail`."""
    [group] = [
        cgroups.make_group(one, places.prefix.name, ())
        for one in cgroups.hierarchies()
        if one.version == 2
    ]
    with subprocess.Popen(["sleep", "1000"]) as process:
        (group / "cgroup.procs").write_text(str(process.pid))
        start = pods.start_time(process.pid)
        found = Pod("mail", process.pid, start, (group,), ClockOffsets(), places)
        alive = lambda _places, name: found if name == "mail" and process.poll() is None else None  # noqa: E731
        monkeypatch.setattr(pods, "find", alive)
        places.runs().mkdir(parents=True)
        yield group, process
        (group / "cgroup.freeze").write_text("0")
        process.kill()
    cgroups.remove([group])


def frozen(group):
    return "frozen 1" in (group / "cgroup.events").read_text()


def until_frozen(group, what):
    from examples.exim.mail import wait_until

    wait_until(lambda: frozen(group) == what, "it is as it should be")


def test_frozen_goes_on_frozen_killed(places, pod, said):
    group, process = pod
    guard = Fence(places, TTL_S, said.append)
    guard.look(10**9)
    guard.extend(1000)
    guard.arm("mail")
    guard.look(979)
    assert not frozen(group)
    guard.look(980)
    until_frozen(group, what=True)
    guard.extend(1010)
    guard.look(985)
    until_frozen(group, what=False)
    guard.look(995)
    guard.look(1000)
    assert process.wait(60) == -signal.SIGKILL
    assert guard.killed == {"mail"}
    assert [text.split(":")[0] for text in said] == [
        "pod mail is frozen",
        "pod mail goes on",
        "pod mail is frozen",
        "pod mail is killed",
    ]


def test_who_comes_after_a_killed_agent_knows_what_it_knew(places, pod, said):
    group, process = pod
    first = Fence(places, TTL_S, said.append)
    first.extend(1000)
    first.arm("mail")
    first.look(985)
    until_frozen(group, what=True)

    second = Fence(places, TTL_S, said.append)
    assert second.armed == {"mail"}
    second.extend(1010)
    second.look(986)
    until_frozen(group, what=False)

    third = Fence(places, TTL_S, said.append)
    third.look(1005)
    assert process.wait(60) == -signal.SIGKILL
    fourth = Fence(places, TTL_S, said.append)
    assert (first.fresh, fourth.fresh, fourth.killed) == (True, False, {"mail"})


def test_a_pod_that_is_not_armed_is_let_be(places, pod, said):
    group, process = pod
    guard = Fence(places, TTL_S, said.append)
    guard.extend(1000)
    guard.arm("mail")
    guard.disarm("mail")
    guard.look(10**6)
    assert (process.poll(), frozen(group), said) == (None, False, [])
    assert Fence(places, TTL_S, said.append).armed == set()


def test_what_another_boot_has_left_is_nothing(places, pod, said, monkeypatch):
    guard = Fence(places, TTL_S, said.append)
    guard.arm("mail")
    file = places.runs() / "fleet.json"
    file.write_text(file.read_text().replace('"boot_id":"', '"boot_id":"0'))
    assert Fence(places, TTL_S, said.append).armed == set()
    file.write_text("{")
    assert Fence(places, TTL_S, said.append).armed == set()
    assert fence.boottime() > 0
