"""A root tree that a second writer changes all the time while a pod is made from it.

Each time the pod starts masked rightly, or it is refused; nothing of the host changes. RACES says
how often each tree is raced.
"""

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher import pods
from launcher.errors import PodError

pytestmark = pytest.mark.needs("root", "namespaces", "cc")

RACES = int(os.environ.get("RACES", "6"))
WAITS = "#include <unistd.h>\nint main(void) { pause(); }"
EXCHANGE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <signal.h>
int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
        if (renameat2(AT_FDCWD, argv[1], AT_FDCWD, argv[2], RENAME_EXCHANGE)) return 1;
}
"""


def link(to):
    return lambda evil: evil.symlink_to(to)


def devices(evil):
    evil.mkdir()
    (evil / "null").symlink_to("/proc/sys/kernel/core_pattern")
    (evil / "pts").symlink_to("/tmp")


TREES = {
    "dev is a link to the root": ("dev", link("/")),
    "dev holds a link in place of null": ("dev", devices),
    "proc is a link to tmp": ("proc", link("/tmp")),
    "proc is an empty directory": ("proc", Path.mkdir),
    "sys is a file": ("sys", Path.touch),
}


@contextmanager
def racing(program, *paths):
    with subprocess.Popen([program, *paths]) as racer:
        try:
            yield
            assert racer.poll() is None
        finally:
            racer.send_signal(signal.SIGKILL)


def witness():
    """What a mount or a write that went astray would change."""
    paths = ("/", "/dev", "/dev/null", "/dev/pts", "/etc", "/sys")  # inodes of /proc come and go
    stats = [os.lstat(path) for path in paths]
    return (
        Path("/proc/self/mountinfo").read_text(),
        Path("/proc/sys/kernel/core_pattern").read_text(),
        sorted(os.listdir("/dev")),
        [(s.st_mode, s.st_uid, s.st_ino, s.st_rdev) for s in stats],
    )


def masks(pod):
    """What is mounted on each proc of the pod: path in it, options and type.

    By mount ids: the directory that proc is mounted on changes its name all the time.
    """
    lines = Path(f"/proc/{pod.init_pid}/mountinfo").read_text().splitlines()
    rows = [(*line.split()[:6], line.partition(" - ")[2].split()[0]) for line in lines]
    types = {row[0]: row[6] for row in rows}
    procs = {row[0] for row in rows if row[6] == "proc" and types.get(row[1]) != "proc"}
    assert procs
    return {
        tuple(sorted((r[4].split("/", 2)[2], r[5], r[6]) for r in rows if r[1] == proc))
        for proc in procs
    }


def bound(host, tree):
    """Mount *tree* itself: an overlay does not exchange directories of its lower layer."""
    root = host.places.root("a")
    root.mkdir(parents=True)
    subprocess.run(["mount", "--bind", tree, root], check=True)
    host._mounted.append("a")
    return root


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_that_changes_while_the_pod_is_made(host, small_tree, compile_static, tree):
    name, make_evil = TREES[tree]
    root = bound(host, small_tree(WAITS, "dev", "proc", "sys"))
    host.configure("a", '[network]\nmode = "none"')
    expected = masks(host.create("a"))
    pods.destroy(host.places, "a")
    assert len(expected) == 1
    assert len(next(iter(expected))) > 10
    exchange = compile_static(EXCHANGE)
    make_evil(root / "other")
    before, started = witness(), 0

    with racing(exchange, root / name, root / "other"):
        for _ in range(RACES):
            try:
                pod = host.create("a")
            except PodError:
                continue
            started += 1
            assert masks(pod) <= expected
            pods.destroy(host.places, "a")

    pods.destroy(host.places, "a")
    assert witness() == before
    print(f"{tree}: {started} of {RACES} started")
