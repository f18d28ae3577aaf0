"""Processes that come and go, and change their memory, while the pod is stopped again and again."""

import random
import re
from pathlib import Path

import pytest

from ckpt import restore
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]

RESTARTS = 4


def rounds(pod):
    """How often has the first process looked at all of its memory?"""
    assert "fail" not in pod.log(), pod.log()
    return max(map(int, re.findall(r"round (\d+)", pod.log())), default=0)


@pytest.mark.parametrize("seed", [1, 2])
def test_all_of_their_memory_is_right(places, exim_root, build, seed):
    chance = random.Random(seed)
    with harness.Pod(places, exim_root) as pod:
        pod.put("/tmp/kin", build(Path(__file__).with_name("kin.c")).read_bytes())
        pod.start("/tmp/kin", str(seed))
        for number in range(RESTARTS):
            goal = rounds(pod) + chance.randrange(1, 20)
            harness.poll(lambda goal=goal: rounds(pod) >= goal, "rounds")
            pod.dump()
            pod.restore(lazy=restore.Following(rate=1 << 22) if number % 2 else None)
        goal = rounds(pod) + 20
        harness.poll(lambda: rounds(pod) >= goal, "rounds")
