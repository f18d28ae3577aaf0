"""Processes that stand still, and what others do to them meanwhile."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckpt import procfs
from ckpt.freeze import Freeze
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root")]

PARENT = """
import subprocess
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
print(child.wait(), flush=True)
"""


@pytest.fixture
def family():
    """A process that waits for its child, and the child's pid."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        yield parent, int(parent.stdout.readline())
        parent.kill()


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    harness.poll(lambda: procfs.is_dead(pid), "end")


def test_the_parent_of_one_that_is_killed_hears_of_it(family):
    parent, child = family
    with Freeze() as freeze:
        freeze.stop_all(lambda: [child])
        kill(child)
    assert parent.stdout.readline() == b"-9\n"


def test_one_that_is_killed_before_all_stand_is_a_zombie(family):
    parent, child = family
    asked = []

    def pids():
        asked.append(None)
        if len(asked) == 2:
            kill(child)
        return [child] if len(asked) == 1 else [child, parent.pid]

    with Freeze() as freeze:
        stopped = {process.host_pid: process for process in freeze.stop_all(pids)}
        assert stopped[child].threads == []
        assert stopped[child].status["State"].startswith("Z")
        assert len(stopped[parent.pid].threads) == 1
    assert parent.stdout.readline() == b"-9\n"


def test_each_thread_has_its_own_moment(family):
    """What is left of a sleep is of that moment, not of that in which the last thread stands."""
    parent, child = family
    asked = []

    def pids():
        asked.append(time.monotonic_ns())
        return [child] if len(asked) == 1 else [child, parent.pid]

    with Freeze() as freeze:
        stopped = {process.host_pid: process for process in freeze.stop_all(pids)}
        assert asked[0] < stopped[child].leader.stopped_ns < asked[1]
        assert asked[1] < stopped[parent.pid].leader.stopped_ns


@pytest.mark.needs("fuse", "namespaces", "cc")
def test_those_that_are_killed_before_they_are_let_go(places, exim_root, build):
    """By their parent, which was let go first. The restart's process is still there: this one."""
    with harness.Pod(places, exim_root) as pod:
        pod.put("/tmp/kills", build(Path(__file__).with_name("kills.c")).read_bytes())
        pod.start("/tmp/kills")
        pod.wait_for("ready\n")
        pod.dump()
        pod.restore(gate=lambda: pod.put("/tmp/go", b""))
        pod.wait_for("ok\n")
