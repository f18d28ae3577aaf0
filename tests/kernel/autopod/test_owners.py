"""Hosts that ask their fleet before they make a pod: it is at one of them, whatever happens."""

import json

import pytest

from tests.kernel.autopod.conftest import BIN
from tests.kernel.autopod.test_migrate import (  # noqa: F401
    count,
    goes_on,
    migrate_with,
    pair,
    settle,
    start_counter,
)

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.long]

GUARD = '#!/bin/sh\nPATH={}:$PATH exec autopod fleet claim "$1"\n'
FAULTS = [
    ("source", "kill:after:autopod.journal.depart"),
    ("source", "kill:after:send.Release"),
    ("source", "cut:before:send.Release"),
    ("target", "kill:after:send.Prepared"),
    ("target", "kill:before:autopod.journal.decide"),
    ("target", "kill:after:autopod.journal.decide"),
    ("target", "cut:before:send.Living"),
]


@pytest.fixture
def guarded(pair, tmp_path):  # noqa: F811
    """Hosts a and b, of one fleet, which claim their pods."""
    for machine in pair:
        join(machine, f'[fleet]\nfile = "{tmp_path}/fleet.db"\nttl_s = 30\n')
        write_guard(machine)
    return pair


def write_guard(machine):
    machine.places.guard().write_text(GUARD.format(BIN))
    machine.places.guard().chmod(0o755)


def join(machine, text):
    """Let the host, and its service whenever it is started again, belong to a fleet."""
    machine.stop_service()
    serve = type(machine).serve.__get__(machine)
    machine.serve = lambda: serve(text)
    machine.serve()


def owner(machine):
    found = json.loads(machine.run("autopod", "fleet", "--json"))["pods"]
    return found["pod"]["host"] if "pod" in found else None


def test_a_pod_is_at_one_host(guarded, debian_root, tmp_path):
    a, b = guarded
    start_counter(a, debian_root)
    assert owner(b) == "a"
    a.run("autopod", "checkpoint", "pod", "-o", tmp_path / "pod.pod", "--leave-running")
    said = b.run("autopod", "restart", "pod", "-i", tmp_path / "pod.pod", expect=1)
    assert "is not to be started here: pod 'pod': host a has it" in said
    assert "hint: autopod fleet claim pod --from HOST" in said
    assert "pod" not in b.run("autopod", "list")

    before = count(a)
    a.run("autopod", "migrate", "pod", "b")
    goes_on(b, before)
    assert owner(a) == "b"
    said = a.run("autopod", "restart", "pod", "-i", tmp_path / "pod.pod", expect=1)
    assert "host b has it" in said
    b.run("launcher", "kill", "pod")
    b.run("autopod", "rm", "pod", "--purge")
    assert owner(a) is None
    a.run("autopod", "restart", "pod", "-i", tmp_path / "pod.pod")
    assert owner(b) == "a"
    assert "pod: a has it" in b.run("autopod", "fleet")


def test_a_host_that_is_off_loses_its_pods_by_name_only(guarded, debian_root):
    a, b = guarded
    start_counter(a, debian_root)
    b.run("autopod", "fleet", "claim", "pod", expect=1)
    b.run("autopod", "fleet", "claim", "pod", "--from", "c", expect=1)
    assert "token" in b.run("autopod", "fleet", "claim", "pod", "--from", "a")
    a.run("launcher", "kill", "pod")
    said = a.run("autopod", "addproc", "pod", "/bin/true", expect=1)
    assert "host b has it" in said
    b.run("autopod", "fleet", "disown", "pod")


def test_without_its_fleet_a_host_starts_nothing_and_gives_nothing_away(guarded, debian_root):
    a, b = guarded
    start_counter(a, debian_root)
    unreachable = '[fleet]\nendpoints = ["http://127.0.0.1:9"]\npatience_s = 1\n'
    join(b, unreachable)
    said = a.run("autopod", "migrate", "pod", "b", expect=1)
    assert "the fleet does not let it: etcd at http://127.0.0.1:9" in said
    goes_on(a, count(a))
    assert (owner(a), b.living("pod")) == ("a", 0)
    b.run("autopod", "fleet", "claim", "pod", expect=3)

    b.places.guard().unlink()
    said = a.run("autopod", "migrate", "pod", "b", "--dry-run", expect=1)
    assert "its host asks its fleet before it starts a pod, and this one does not" in said


@pytest.mark.parametrize(
    "faults", [FAULTS[:4], FAULTS[4:]], ids=["before it is decided", "after that"]
)
def test_after_a_fault_the_pod_is_where_its_owner_is(guarded, debian_root, faults):
    source, target = guarded
    start_counter(source, debian_root)
    for side, fault in faults:
        before = count(source)
        said = migrate_with(source, target, side, fault)
        living = settle(guarded)
        print(side, fault, [machine.name for machine in living], said)
        assert len(living) == 1, (side, fault, said, living)
        goes_on(living[0], before)
        assert owner(source) == living[0].name, (side, fault)
        if living[0] is target:
            source, target = target, source


def test_a_pod_that_was_taken_over_and_not_released_is_taken_back(guarded, debian_root):
    """Its new host dies between the two: after the fleet knows it, before it is decided."""
    source, target = guarded
    start_counter(source, debian_root)
    before = count(source)
    migrate_with(source, target, "target", "kill:before:autopod.journal.decide")
    assert settle(guarded) == [source]
    goes_on(source, before)
    events = json.loads(source.run("autopod", "fleet", "--json"))["events"]
    assert [event["text"] for event in events if event["kind"] == "owner"] == [
        "pod is at a now",
        "pod is at b now, was at a",
        "pod is at a now, was at b",
    ]
