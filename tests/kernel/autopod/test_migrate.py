"""Pods move between two hosts: network namespaces with a wire between them."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from autopod import journal, moves
from ckpt import lazy, stack
from examples import hosts
from examples.exim.mail import wait_until
from launcher import enter, pods, userns
from launcher.errors import Locked
from launcher.lock import locked

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.long]

COUNTER = """\
import time
n = 0
while True:
    n += 1
    with open("/var/tmp/count", "w") as file:
        file.write(f"{n}\\n")
    time.sleep(0.05)
"""


@pytest.fixture
def pair():
    with hosts.pair() as machines:
        yield machines


def start_counter(machine, debian_root, program=COUNTER):
    machine.run("autopod", "add", "pod", "--base", debian_root)
    (machine.root("pod") / "var/tmp/counter.py").write_text(program)
    machine.run("autopod", "addproc", "pod", "/usr/bin/python3", "/var/tmp/counter.py")
    wait_until(lambda: count(machine), "it counts")


def count(machine):
    with contextlib.suppress(OSError, ValueError):
        return int((machine.root("pod") / "var/tmp/count").read_text())
    return 0


def goes_on(machine, beyond):
    wait_until(lambda: count(machine) > beyond, f"the pod counts beyond {beyond} at {machine.name}")


def test_there_and_back_again(pair, debian_root):
    a, b = pair
    start_counter(a, debian_root)
    assert "can move" in a.run("autopod", "migrate", "pod", "b", "--dry-run")
    assert a.living("pod")
    for source, target in [(a, b), (b, a), (a, b)]:
        before = count(source)
        said = source.run("autopod", "migrate", "pod", target.name)
        assert "down" in said
        print(said)
        goes_on(target, before)
        assert source.living("pod") == 0
        assert not source.root("pod").exists()


def test_a_pod_with_a_user_namespace_gets_the_ids_of_each_host(pair, debian_root):
    a, b = pair
    for machine, first in ((a, 1 << 20), (b, 1 << 21)):
        machine.places.users_config().write_text(f"first = {first}\n")
    a.configure("pod", "[user]\nnamespace = true\n")
    start_counter(a, debian_root)
    for source, target, first in [(a, b, 1 << 21), (b, a, 1 << 20), (a, b, 1 << 21)]:
        before = count(source)
        source.run("autopod", "migrate", "pod", target.name)
        goes_on(target, before)
        assert not source.living("pod")
        pod = pods.find(target.places, "pod")
        assert [userns.base(pid) for pid in enter.pids(pod)] == [first]
        written = target.root("pod") / "var/tmp/count"
        assert written.stat().st_uid == first
        assert target.run("launcher", "exec", "pod", "stat", "-c", "%u", "/var/tmp/count") == "0\n"


def test_who_looks_sees_how_far_it_is(pair, debian_root):
    a, b = pair
    start_counter(a, debian_root)
    seen = set()
    with subprocess.Popen(a.command("autopod", "migrate", "pod", "b")) as process:

        def has_ended():
            for machine in pair:
                seen.update(
                    (machine.name, one.host, one.step) for one in moves.going_on(machine.places)
                )
            return process.poll() is not None

        wait_until(has_ended, "the pod has moved")
    assert process.returncode == 0
    assert {("a", "b", "restart"), ("b", None, "it is being built here")} <= seen
    assert moves.going_on(a.places) == moves.going_on(b.places) == []


BUSY = """\
n = 0
open("/var/tmp/busy", "wb").close()
while True:
    n += 1
    with open("/var/tmp/busy", "r+b") as file:
        file.write(bytes([n % 256]) * (8 << 20))
    with open("/var/tmp/count", "w") as file:
        file.write(f"{n}\\n")
"""


def test_files_that_are_written_all_the_time_go_ahead(pair, debian_root):
    source, target = pair
    source.run("autopod", "add", "pod", "--base", debian_root)
    (source.root("pod") / "var/tmp/busy.py").write_text(BUSY)
    source.run("autopod", "addproc", "pod", "/usr/bin/python3", "/var/tmp/busy.py")
    wait_until(lambda: count(source) > 1, "it writes")
    before = count(source)
    source.run("autopod", "migrate", "pod", target.name)
    goes_on(target, before)
    # Sealed for the offer, when memory had gone, and when the pod stood still.
    assert len(stack.status(target.places, "pod").layers) == 3
    assert (target.root("pod") / "var/tmp/busy").stat().st_size == 8 << 20


REMEMBERS = """\
import hashlib, os, time
kept, n = os.urandom(64 << 20), 0
first = hashlib.sha256(kept).digest()
while hashlib.sha256(kept).digest() == first:
    n += 1
    with open("/var/tmp/count", "w") as file:
        file.write(f"{n}\\n")
    time.sleep(0.1)
"""


def test_memory_follows_when_the_pod_runs_already(pair, debian_root):
    source, target = pair
    start_counter(source, debian_root, REMEMBERS)
    for _ in range(3):  # the next one begins while memory still follows
        before = count(source)
        assert "of its memory follow" in source.run("autopod", "migrate", "pod", target.name)
        source, target = target, source
    goes_on(source, before + 1)
    lazy.wait(source.places, "pod")
    assert not list(source.places.states().glob(".*/.following*"))


SOURCE_FAULTS = [
    "kill:before:send.Offer",
    "kill:after:send.Layer",
    "kill:after:ckpt.sealing.seal",
    "kill:after:send.Still",
    "kill:after:ckpt.ahead.watch",
    "kill:after:send.Archive",
    "kill:before:send.Head",
    "kill:before:autopod.journal.depart",
    "kill:after:autopod.journal.depart",
    "kill:after:launcher.pods.kill",
    "kill:after:send.Release",
    "kill:before:autopod.leaving.leave",
    "kill:before:launcher.network.withdraw_network",
    "kill:before:autopod.journal.departed",
    "cut:after:send.Archive",
    "cut:after:send.Still",
    "cut:before:send.Release",
]
TARGET_FAULTS = [
    "kill:before:send.Accepted",
    "kill:after:send.Done",
    "kill:after:ckpt.layers.install",
    "kill:after:launcher.pods.create",
    "kill:before:ckpt.restore.restore",
    "kill:before:send.Prepared",
    "kill:after:send.Prepared",
    "kill:before:autopod.journal.decide",
    "kill:after:autopod.journal.decide",
    "kill:before:send.Living",
    "kill:after:send.Living",
    "cut:after:send.Prepared",
    "cut:before:send.Living",
]


FAULTY = Path(__file__).with_name("faulty.py")


def migrate_with(source, target, side, fault):
    """Migrate with *fault* at one side, until the command at the source has ended."""
    faulty = (sys.executable, FAULTY)
    if side == "source":
        return source.run(*faulty, "migrate", "pod", target.name, fault, expect=None)
    target.stop_service()
    argv = target.command(*faulty, "serve", target.address, "7463", fault)
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        server.stdout.readline()
        argv = source.command("autopod", "migrate", "pod", target.name)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as command:
            server.wait()
            target.serve()  # who insists on an answer gets one
            return command.communicate()[0].decode()


def settle(machines):
    """Let the services finish what is broken off; return where the pod lives then."""
    for machine in filter(unsettled, machines):
        machine.run(sys.executable, "-m", "autopod.answer", "settle")
    wait_until(lambda: not any(map(unsettled, machines)), "nothing is left to be settled")
    return [machine for machine in machines if machine.living("pod")]


def by_pod(pair, living):
    """Return the two machines, that where the pod lives first."""
    return sorted(pair, key=lambda machine: machine is not living)


def is_without_pod(machine):
    """Is nothing of the pod to be seen there?"""
    return "pod" not in machine.run("autopod", "list") and not machine.root("pod").exists()


def unsettled(machine):
    with contextlib.suppress(Locked), locked(machine.places, "pod"):
        return journal.is_moving(machine.places, "pod") or journal.unfinished(machine.places)
    return True


@pytest.mark.parametrize("fault", ["kill:after:autopod.journal.decide", "kill:after:send.Living"])
def test_who_receives_a_pod_whose_memory_follows_is_killed(pair, debian_root, fault):
    source, target = pair
    start_counter(source, debian_root, REMEMBERS)
    before = count(source)
    migrate_with(source, target, "target", fault)
    assert settle(pair) == [target]
    goes_on(target, before + 2)
    lazy.wait(target.places, "pod")
    assert not list(target.places.states().glob(".*/.following*"))


@pytest.mark.parametrize(
    ("side", "faults"),
    [
        ("source", SOURCE_FAULTS[:9]),
        ("source", SOURCE_FAULTS[9:]),
        ("target", TARGET_FAULTS[:8]),
        ("target", TARGET_FAULTS[8:]),
    ],
    ids=["source-before", "source-after", "target-before", "target-after"],
)
def test_a_fault_at_any_step_leaves_one_pod(pair, debian_root, side, faults):
    """Whatever is killed or cut, the services make it one living pod that has lost nothing."""
    source, target = pair
    start_counter(source, debian_root)
    for fault in faults:
        before = count(source)
        said = migrate_with(source, target, side, fault)
        living = settle(pair)
        print(side, fault, [machine.name for machine in living], said)
        assert len(living) == 1, (side, fault, said, living)
        goes_on(living[0], before)
        source, target = by_pod(pair, living[0])
        assert is_without_pod(target), (side, fault)
