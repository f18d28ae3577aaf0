"""Pods move between two hosts: network namespaces with a wire between them, a prefix each."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from autopod import journal
from examples import leftovers
from examples.exim.mail import wait_until
from launcher.errors import Locked
from launcher.lock import locked
from launcher.places import Places
from tests.conftest import GRACE_S
from tests.kernel.autopod.conftest import BIN

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

COUNTER = """\
import time
n = 0
while True:
    n += 1
    with open("/var/tmp/count", "w") as file:
        file.write(f"{n}\\n")
    time.sleep(0.01)
"""


class Machine:
    """A host: a network namespace with an address on the wire, a prefix, and its service."""

    def __init__(self, name, number):
        self.name, self.address = name, f"192.0.2.{number}"
        self.prefix = Path(tempfile.mkdtemp(prefix=f"autopod-{name}-"))
        self.places = Places(self.prefix)
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.service = None

    def command(self, *argv):
        """Return *argv* as it is run on this host."""
        words = [os.fspath(word) for word in argv]
        return [
            *("nsenter", f"--net=/proc/{self.holder.pid}/ns/net"),
            *("env", f"AUTOPOD_PREFIX={self.prefix}"),
            *((BIN / words[0], *words[1:]) if (BIN / words[0]).exists() else words),
        ]

    def run(self, *argv, expect=0):
        run = subprocess.run(
            self.command(*argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert expect in (None, run.returncode), f"{argv}: {run.returncode}\n{run.stdout}"
        assert "Traceback" not in run.stdout, run.stdout
        return run.stdout

    def serve(self):
        self.service = subprocess.Popen(self.command("autopod", "statusd"))
        wait_until(lambda: ":7463" in self.run("ss", "-ltn"), "the service listens")

    def stop_service(self, number=signal.SIGTERM):
        if self.service:
            self.service.send_signal(number)
            self.service.wait()
            self.service = None

    def root(self, pod):
        return self.prefix / "autopod" / pod / "root"

    def living(self, pod):
        """How many processes the pod has here."""
        rows = {row["pod"]: row for row in json.loads(self.run("autopod", "list", "--json"))}
        return rows[pod]["processes"] if pod in rows else 0

    def end(self):
        self.stop_service()
        for row in json.loads(self.run("autopod", "list", "--json")):
            self.run("autopod", "rm", row["pod"], "--purge")
        deadline = time.monotonic() + GRACE_S
        while (left := leftovers.everything(self.prefix)) and time.monotonic() < deadline:
            time.sleep(0.01)
        if left:
            leftovers.remove(self.prefix)
        self.holder.kill()
        self.holder.wait()
        shutil.rmtree(self.prefix)
        return left


@pytest.fixture
def pair():
    with contextlib.ExitStack() as undo:
        machines = [Machine("a", 1), Machine("b", 2)]
        left = []
        for machine in machines:
            undo.callback(lambda machine=machine: left.extend(machine.end()))
        a, b = machines
        wait_until(lambda: separate(a) and separate(b), "two network namespaces")
        ends = [("netns", str(machine.holder.pid)) for machine in machines]
        wire = [*ends[0], "type", "veth", "peer", "name", "wire", *ends[1]]
        subprocess.run(["ip", "link", "add", "wire", *wire], check=True)
        for machine in machines:
            machine.run("ip", "link", "set", "lo", "up")
            machine.run("ip", "addr", "add", f"{machine.address}/24", "dev", "wire")
            machine.run("ip", "link", "set", "wire", "up")
            machine.run(
                "autopod", "host", "init", "--name", machine.name, "--address", machine.address
            )
            machine.serve()
        *_, join = a.run("autopod", "host", "invite").split(maxsplit=3)
        b.run("autopod", "host", "join", *join.split())
        yield a, b
    assert not left, "left behind:\n" + "\n".join(left)


def separate(machine):
    own = os.stat("/proc/self/ns/net").st_ino
    return os.stat(f"/proc/{machine.holder.pid}/ns/net").st_ino != own


def start_counter(machine, debian_root):
    machine.run("autopod", "add", "pod", "--base", debian_root)
    (machine.root("pod") / "var/tmp/counter.py").write_text(COUNTER)
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


SOURCE_FAULTS = [
    "kill:before:send.Offer",
    "kill:after:send.Layer",
    "kill:after:ckpt.layers.seal",
    "kill:after:send.Archive",
    "kill:before:autopod.journal.depart",
    "kill:after:autopod.journal.depart",
    "kill:after:launcher.pods.kill",
    "kill:after:send.Release",
    "kill:before:autopod.leaving.leave",
    "kill:before:launcher.network.remove_network",
    "kill:before:autopod.journal.departed",
    "cut:after:send.Archive",
    "cut:before:send.Release",
]
TARGET_FAULTS = [
    "kill:before:send.Accepted",
    "kill:after:send.Done",
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
    for machine in machines:
        machine.run(sys.executable, "-m", "autopod.answer", "settle")
    wait_until(lambda: not any(map(unsettled, machines)), "nothing is left to be settled")
    return [machine for machine in machines if machine.living("pod")]


def unsettled(machine):
    with contextlib.suppress(Locked), locked(machine.places, "pod"):
        return journal.is_moving(machine.places, "pod") or journal.unfinished(machine.places)
    return True


@pytest.mark.parametrize(
    ("side", "faults"),
    [
        ("source", SOURCE_FAULTS[:7]),
        ("source", SOURCE_FAULTS[7:]),
        ("target", TARGET_FAULTS[:6]),
        ("target", TARGET_FAULTS[6:]),
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
        if living[0] is target:
            source, target = target, source
        assert "pod" not in target.run("autopod", "list"), (side, fault)
        assert not target.root("pod").exists(), (side, fault)
