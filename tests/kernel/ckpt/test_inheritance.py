"""Processes share the pages after a restart that they shared before it."""

import array
from itertools import combinations

import pytest

from ckpt import pagemap, procfs, restore
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]

LEAST = 2048 - 300
"""Pages that the first process and its child share at least."""


def frames(host_pid):
    """Where the pages of a process are, by their addresses."""
    found = {}
    with pagemap.PageMap(host_pid) as pages:
        for m in procfs.parse_maps(procfs.read_bytes(host_pid, "maps")):
            if m.shared or m.name.startswith(b"[v"):
                continue
            for at, block in pages.blocks(m.start, m.end):
                for number, entry in enumerate(array.array("Q", block)):
                    if pagemap.is_own(entry):
                        found[at + number * 4096] = pagemap.frame(entry)
    return found


def shared(pod):
    """At which addresses do two of the processes have the same pages?"""
    found = {pid: frames(host_pid) for pid, host_pid in pod.host_pids().items()}
    return {
        (a, b): {at for at, frame in found[a].items() if found[b].get(at) == frame}
        for a, b in combinations(sorted(found), 2)
    }


def start(pod, build):
    pod.start(*harness.install(pod, "workers.c", build))
    pod.wait_for("ready\n")
    assert len(pod.host_pids()) == 3


@pytest.mark.parametrize("lazy", [None, restore.Following(rate=None)], ids=["whole", "lazy"])
def test_workers_share_what_they_shared(places, debian_root, build, lazy):
    with harness.Pod(places, debian_root) as pod:
        start(pod, build)
        before = shared(pod)
        first, second, _ = sorted(pod.host_pids())
        assert len(before[first, second]) >= LEAST
        for _ in range(2):
            pod.dump()
            pod.restore(lazy=lazy)
            after = shared(pod)
            lost = {pair: sorted(pages - after[pair]) for pair, pages in before.items()}
            assert not any(lost.values()), lost
        pod.finish(first)
