"""Memory that follows while the program runs already is what it was, or nobody sees it."""

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from ckpt import lazy, restore, userfault
from ckpt.archive.errors import Damaged
from launcher import pods
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]

ON_DEMAND = restore.Following(rate=0)


def start(pod, build, threads=1, rounds=200):
    """Start a program that knows what its memory is to hold; return its process id."""
    pod.put("/tmp/follows", build(Path(__file__).with_name("follows.c")).read_bytes())
    pod.start("/tmp/follows", str(threads), str(rounds))
    pod.wait_for("ready\n")
    return min(pod.host_pids())


def look(pod, pid):
    """Have the program do what it does, and look at all of its memory."""
    before = pod.log().count("ok\n")
    pod.signal(pid)
    harness.poll(lambda: "fail" in pod.log() or pod.log().count("ok\n") > before, "answer")
    assert "fail" not in pod.log()


def watched(pod):
    """How many mappings of the pod does the kernel still watch?"""
    smaps = [Path(f"/proc/{pid}/smaps").read_text() for pid in pod.host_pids().values()]
    return len(re.findall(r"^VmFlags:.* um", "".join(smaps), re.MULTILINE))


def servers(pod):
    """Return the process ids of guard and page server, which have the archive open."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            open_files = {os.readlink(file) for file in (entry / "fd").iterdir()}
            if os.fspath(pod.archive) in open_files:
                status = (entry / "status").read_text()
                found[int(entry.name)] = int(re.search(r"PPid:\s(\d+)", status)[1])
    (server,) = [pid for pid, parent in found.items() if parent in found]
    return found[server], server


@pytest.mark.parametrize("threads", [1, 4])
def test_memory_is_right_whatever_is_done_with_it(places, exim_root, build, threads):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build, threads)
        pod.dump()
        report = pod.restore(lazy=restore.Following(rate=2 << 20))
        assert any("follow while" in note for note in report.notes)
        assert watched(pod)
        look(pod, pid)


def test_nothing_is_left_when_all_has_arrived(places, exim_root, build):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        before = sorted(os.listdir(f"/proc/{pod.host_pids()[pid]}/fd"))
        pod.dump()
        pod.restore(lazy=ON_DEMAND)
        pod.archive.unlink()
        assert watched(pod)
        assert sorted(os.listdir(f"/proc/{pod.host_pids()[pid]}/fd")) == before
        lazy.wait(places, pod.name)
        assert not watched(pod)
        assert not (places.run(pod.name) / "pages.sock").exists()
        look(pod, pid)


def test_a_checkpoint_has_what_has_not_arrived(places, exim_root, build):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build, threads=4, rounds=200)
        pod.dump()
        pod.restore(lazy=ON_DEMAND)
        pod.signal(pid)  # it goes on with that through all of the following
        for _ in range(2):
            assert watched(pod)
            pod.dump()
            pod.restore(lazy=ON_DEMAND)
        pod.dump()
        pod.restore()
        assert not watched(pod)
        pod.wait_for_match("^(ok|fail.*)$")
        assert "fail" not in pod.log()


@pytest.mark.parametrize("which", ["guard", "server"])
def test_without_its_server_the_pod_ends(places, exim_root, build, which):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        pod.restore(lazy=ON_DEMAND)
        guard, server = servers(pod)
        os.kill(server, signal.SIGSTOP)
        pod.signal(pid)  # it waits for a page
        os.kill(guard if which == "guard" else server, signal.SIGKILL)
        os.kill(server, signal.SIGCONT)
        harness.poll(lambda: pod.running() is None, "end of the pod")
        harness.poll(lambda: "so the pod was killed" in pod.log(), "reason")
        assert "ok" not in pod.log()
        assert "fail" not in pod.log()
        pods.destroy(places, pod.name)
        pod.restore(lazy=ON_DEMAND)
        look(pod, pid)


def test_an_archive_that_becomes_unreadable_ends_the_pod(places, exim_root, build):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        pod.restore(lazy=ON_DEMAND)
        os.truncate(pod.archive, 5000)
        pod.signal(pid)
        harness.poll(lambda: "so the pod was killed" in pod.log(), "reason")
        assert "fail" not in pod.log()


def test_a_damaged_archive_is_refused_before(places, exim_root, build):
    with harness.Pod(places, exim_root) as pod:
        start(pod, build)
        pod.dump()
        with open(pod.archive, "r+b") as file:
            file.seek(20_000)
            byte = file.read(1)[0]
            file.seek(20_000)
            file.write(bytes([byte ^ 1]))
        with pytest.raises(Damaged, match="frame"):
            pod.restore(lazy=ON_DEMAND)
        assert pod.running() is None


def test_what_fails_at_the_end_leaves_nothing(places, exim_root, build):
    def fail():
        raise RuntimeError("not now")

    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        with pytest.raises(RuntimeError):
            pod.restore(lazy=ON_DEMAND, gate=fail)
        assert pod.running() is None
        pod.restore(lazy=ON_DEMAND)
        look(pod, pid)


def test_a_kernel_that_cannot_is_told(places, exim_root, build, monkeypatch):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        monkeypatch.setattr(userfault, "FEATURES", 1 << 60)
        report = pod.restore(lazy=ON_DEMAND)
        assert any("this kernel" in note for note in report.notes)
        assert not watched(pod)
        look(pod, pid)


def test_an_encrypted_archive_that_builds_upon_another(places, exim_root, build):
    with harness.Pod(places, exim_root) as pod:
        harness.tool("ckpt", "keygen", "--encryption")
        pid = start(pod, build)
        first = places.prefix / "first.pod"
        harness.tool("ckpt", "dump", pod.name, "-o", first, "--leave-running")
        harness.tool("ckpt", "dump", pod.name, "-o", pod.archive, "--since", first)
        said = harness.tool(
            "ckpt", "restore", pod.name, "-i", pod.archive, "--lazy", "--lazy-rate", "0"
        )
        assert "follow while it runs" in said
        first.unlink()
        look(pod, pid)
