"""Memory that follows while the program runs already is what it was, or nobody sees it."""

import contextlib
import ctypes
import mmap
import os
import random
import re
import resource
import select
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from ckpt import abi, lazy, restore, userfault
from ckpt.arch import x86_64 as arch
from ckpt.archive.errors import Damaged
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]

ON_DEMAND = restore.Following(rate=0)


def start(pod, build, threads=1, rounds=200):
    """Start a program that knows what its memory is to hold; return its process id."""
    pod.put("/tmp/follows", build(Path(__file__).with_name("follows.c")).read_bytes())
    pod.start("/tmp/follows", str(threads), str(rounds))
    pod.wait_for("ready\n")
    return min(pod.host_pids())


def kill(pid):
    """Kill a process, and wait until it has ended."""
    with open_pidfd(pid) as pidfd:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], harness.DEADLINE_S)[0]


@contextlib.contextmanager
def open_pidfd(pid):
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def look(pod, pid):
    """Have the program do what it does, and look at all of its memory."""
    before = pod.log().count("ok\n")
    pod.signal(pid)
    look_at_answer(pod, before)


def look_at_answer(pod, before=0):
    harness.poll(lambda: "fail" in pod.log() or pod.log().count("ok\n") > before, "answer")
    assert "fail" not in pod.log()


def watched(pod):
    """How many mappings of the pod does the kernel still watch?"""
    smaps = [Path(f"/proc/{pid}/smaps").read_text() for pid in pod.host_pids().values()]
    return len(re.findall(r"^VmFlags:.* um", "".join(smaps), re.MULTILINE))


def servers(pod):
    """Return the process ids of guard and page server, which have the archive open, by name.

    None: there are not two of them, now.
    """
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            open_files = {os.readlink(file) for file in (entry / "fd").iterdir()}
            if os.fspath(pod.archive) in open_files:
                status = (entry / "status").read_text()
                found[int(entry.name)] = int(re.search(r"PPid:\s(\d+)", status)[1])
    guards = [pid for pid, parent in found.items() if parent in found]
    if len(guards) != 1 or len(found) != 2:
        return None
    return {"guard": guards[0], "server": found[guards[0]]}


def guard_of(server):
    """Return the process id of the guard of a page server, if there is one, now."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
            if os.listdir(f"/proc/{child}/fd"):  # it has not ended
                return int(child)
    return None


def test_what_memory_is_there_is_seen():
    fd = abi.syscall("userfaultfd", arch.SYSCALLS["userfaultfd"], os.O_CLOEXEC | os.O_NONBLOCK)
    length = 8 * mmap.PAGESIZE
    with open(fd, "rb", 0), mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        here = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(here)
        abi.ioctl(fd, abi.UFFDIO_API, abi.uffdio_api(abi.UFFD_API, 0))
        userfault.register(fd, start, length // 2)
        answers = [userfault.has(fd, start + page * mmap.PAGESIZE) for page in range(8)]
        del here
    assert answers == [True] * 4 + [False] * 4


@pytest.mark.parametrize("threads", [1, 4])
def test_memory_is_right_whatever_is_done_with_it(places, exim_root, build, threads):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build, threads)
        pod.dump()
        report = pod.restore(lazy=restore.Following(rate=2 << 20))
        assert any("follow while" in note for note in report.notes)
        assert watched(pod)
        look(pod, pid)


@pytest.mark.parametrize("how", ["shrink", "drop", "unmap", "part"])
def test_what_has_grown_into_memory_that_was_moved(places, exim_root, build, how):
    """Both happen before the server hears of either."""
    with harness.Pod(places, exim_root) as pod:
        pod.put("/tmp/grows", build(Path(__file__).with_name("grows.c")).read_bytes())
        pod.start("/tmp/grows", how)
        pod.wait_for("ready\n")
        pid = min(pod.host_pids())
        pod.dump()
        pod.restore(lazy=ON_DEMAND)
        server = servers(pod)["server"]
        os.kill(server, signal.SIGSTOP)
        pod.signal(pid)
        pod.wait_for("grown\n")
        harness.poll(partial(waits, pod.host_pids()[pid], 2), "both wait")
        os.kill(server, signal.SIGCONT)
        look_at_answer(pod)


def waits(host_pid, count):
    """Do so many threads of a process wait for the page server?"""
    threads = Path(f"/proc/{host_pid}/task").iterdir()
    states = [(one / "stat").read_text().rpartition(") ")[2][0] for one in threads]
    return states.count("D") == count


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
def test_another_one_takes_the_place_of_who_is_killed(places, exim_root, build, which):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        pod.restore(lazy=ON_DEMAND)
        before = servers(pod)
        os.kill(before["server"], signal.SIGSTOP)
        pod.signal(pid)  # it waits for a page
        kill(before[which])
        if which == "guard":
            os.kill(before["server"], signal.SIGCONT)
        look_at_answer(pod)
        harness.poll(lambda: servers(pod), "there are two again")
        assert servers(pod)["server"] == before["server" if which == "guard" else "guard"]
        lazy.wait(places, pod.name)
        harness.poll(lambda: servers(pod) is None, "they end")
        assert not watched(pod)
        look(pod, pid)


@pytest.mark.parametrize("threads", [1, 4])
def test_they_may_be_killed_at_any_moment(places, exim_root, build, threads):
    """Again and again, while the program changes its memory: it is right, and all of it comes."""
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build, threads, rounds=400)
        pod.dump()
        pod.restore(lazy=restore.Following(rate=1 << 20))
        server = servers(pod)["server"]
        pod.signal(pid)
        chance, killed = random.Random(threads), 0
        while "ok" not in pod.log() and "fail" not in pod.log():
            if killed < 100 and (guard := guard_of(server)):
                killed += 1
                if chance.random() < 0.2:
                    kill(guard)
                else:
                    kill(server)
                    server = guard
        print(f"{killed} were killed")
        assert killed
        look_at_answer(pod)
        lazy.wait(places, pod.name)
        look(pod, pid)


def test_they_may_be_killed_without_end(places, exim_root, build):
    """Nothing of who was killed is left: no calls within calls, no descriptors."""
    kills = 150
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(2 * kills + 100)  # the servers inherit it
        try:
            pod.restore(lazy=ON_DEMAND)
        finally:
            sys.setrecursionlimit(limit)
        server = servers(pod)["server"]
        for _ in range(kills):
            guard = harness.poll(partial(guard_of, server), "there are two")
            kill(server)
            server = guard
        harness.poll(partial(guard_of, server), "there are two")
        assert len(os.listdir(f"/proc/{server}/fd")) < 32
        look(pod, pid)


def test_one_that_cannot_take_the_place_ends_the_pod(places, exim_root, build):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        pod.restore(lazy=ON_DEMAND)
        found = servers(pod)
        resource.prlimit(found["guard"], resource.RLIMIT_NOFILE, (3, 3))
        os.kill(found["server"], signal.SIGSTOP)
        pod.signal(pid)
        kill(found["server"])
        harness.poll(lambda: not pod.host_pids(), "end")
        assert "fail" not in pod.log()


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


LACKS = {
    "little memory": ("ckpt.restore._free_memory", lambda: 1 << 20),
    "cgroup v2": ("launcher.cgroups.freezer", lambda _paths: None),
}


@pytest.mark.parametrize("lacking", LACKS)
def test_a_host_that_had_better_not_is_told(places, exim_root, build, monkeypatch, lacking):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        monkeypatch.setattr(*LACKS[lacking])
        report = pod.restore(lazy=ON_DEMAND)
        assert any(lacking in note for note in report.notes)
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
