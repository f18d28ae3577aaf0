"""A pod moves, and the disk of its state is full at one of the hosts, from some step on."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from examples import hosts
from examples.exim.mail import wait_until
from tests.kernel.autopod import faulty
from tests.kernel.autopod.test_migrate import (
    FAULTY,
    by_pod,
    count,
    goes_on,
    is_without_pod,
    migrate_with,
    settle,
)

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.long]

COUNTER = """\
import time
n = 0
while True:
    n += 1
    try:
        with open("/var/tmp/count", "w") as file:
            file.write(f"{n}\\n")
    except OSError:
        pass  # the disk is full: it is told later
    time.sleep(0.05)
"""


class SmallDisk(hosts.Machine):
    """A host whose pods' state is on a disk of its own."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.disk = Path(tempfile.mkdtemp(prefix="autopod-disk-"))
        tmpfs = ("mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "disk", self.disk)
        subprocess.run(tmpfs, check=True)
        (self.prefix / "var/lib").symlink_to(self.disk)

    def make_room(self):
        (self.disk / faulty.FILLER).unlink(missing_ok=True)

    def end(self):
        self.make_room()
        left = super().end()
        subprocess.run(["umount", "-l", self.disk], check=True)
        self.disk.rmdir()
        return left


@pytest.fixture
def pair():
    with hosts.pair(SmallDisk) as machines:
        yield machines


def start_counter(machine, debian_root):
    machine.run("autopod", "add", "pod", "--base", debian_root)
    (machine.root("pod") / "var/tmp/counter.py").write_text(COUNTER)
    machine.run("autopod", "addproc", "pod", "/usr/bin/python3", "/var/tmp/counter.py")
    wait_until(lambda: count(machine), "it counts")


SOURCE = [
    "full:before:send.Offer",
    "full:after:send.Layer",
    "full:after:ckpt.sealing.seal",
    "full:after:ckpt.ahead.watch",
    "full:after:send.Archive",
    "full:after:send.Still",
    "full:before:send.Head",
    "full:before:autopod.journal.depart",
    "full:after:autopod.journal.depart",
    "full:after:launcher.pods.kill",
    "full:after:send.Release",
    "full:before:autopod.leaving.leave",
    "full:before:launcher.network.withdraw_network",
    "full:before:autopod.journal.departed",
]
TARGET = [
    "full:before:autopod.journal.arrive",
    "full:after:autopod.journal.arrive",
    "full:before:send.Accepted",
    "full:after:send.Done",
    "full:before:ckpt.layers.install",
    "full:after:launcher.pods.create",
    "full:before:ckpt.restore.restore",
    "full:before:send.Prepared",
    "full:after:send.Prepared",
    "full:before:autopod.journal.decide",
    "full:after:autopod.journal.decide",
    "full:before:send.Living",
    "full:after:send.Living",
]


def forget_errors(machine):
    """Have the kernel tell that the pod's own writes have failed before, which it does once."""
    subprocess.run(["sync", "-f", machine.root("pod")], stderr=subprocess.DEVNULL, check=False)


def check_error(said):
    """It says what is full, and what to do, in two lines."""
    lines = said.splitlines()
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == ["error", "hint"], said
    assert "No space left on device: /" in said or " MiB are free " in said


def test_who_has_no_room_takes_a_pod_back(pair, debian_root):
    """The former host's disk is full, and the new host dies just before it has taken the pod."""
    source, target = pair
    start_counter(source, debian_root)
    before = count(source)
    target.stop_service()
    serving = (sys.executable, FAULTY, "serve", target.address, "7463")
    argv = target.command(*serving, "kill:before:autopod.journal.decide")
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        server.stdout.readline()
        fault = "full:after:autopod.journal.depart"
        migrating = (sys.executable, FAULTY, "migrate", "pod", target.name, fault)
        with subprocess.Popen(
            source.command(*migrating), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as command:
            server.wait()
            target.serve()
            said = command.communicate()[0].decode()
    assert "it runs here again" in said
    assert source.living("pod"), said
    source.make_room()
    assert settle(pair) == [source], said
    goes_on(source, before)


@pytest.mark.parametrize(
    ("side", "faults"),
    [
        ("source", SOURCE[:7]),
        ("source", SOURCE[7:]),
        ("target", TARGET[:6]),
        ("target", TARGET[6:]),
    ],
    ids=["source-before", "source-after", "target-before", "target-after"],
)
def test_a_full_disk_at_any_step_leaves_one_pod(pair, debian_root, side, faults):
    source, target = pair
    start_counter(source, debian_root)
    for fault in faults:
        forget_errors(source)
        before = count(source)
        said = migrate_with(source, target, side, fault)
        while_full = [machine for machine in pair if machine.living("pod")]
        print(f"{side} ({source.name}) {fault}: {[m.name for m in while_full]}\n{said}")
        for machine in pair:
            machine.make_room()
        living = settle(pair)
        assert while_full == living, (side, fault, said, while_full, living)
        assert len(living) == 1, (side, fault, said, living)
        if living[0] is source:
            check_error(said)
        goes_on(living[0], before)
        source, target = by_pod(pair, living[0])
        assert is_without_pod(target), (side, fault)
