"""Memory that is stored while the program runs is what it is when the program stands still."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt import abi, procfs, softdirty
from ckpt.ahead import Ahead
from ckpt.arch import x86_64 as arch
from ckpt.freeze import Freeze
from ckpt.model import PAGE_SIZE
from ckpt.pagemap import PageMap
from ckpt.tracee import Memory
from launcher import enter
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces")]

FULL = """
import resource, os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
print("ok", flush=True)
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from ckpt.ahead import Ahead
from launcher import pods
from launcher.places import Places
places = Places(Path(sys.argv[1]))
with Ahead(pods.find(places, "w"), lambda _view: 0) as ahead:
    ahead.copy(lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: None)
"""


def nothing():
    """Neither does anybody take what was stored, nor is anything done about it."""


def kernel_protects():
    """Can this kernel do what ckpt/protected.py needs? Not before Linux v6.7."""
    fd = abi.syscall("userfaultfd", arch.SYSCALLS["userfaultfd"], abi.UFFD_USER_MODE_ONLY)
    features = abi.UFFD_FEATURE_WP_ASYNC | abi.UFFD_FEATURE_WP_UNPOPULATED
    try:
        abi.ioctl(fd, abi.UFFDIO_API, abi.uffdio_api(abi.UFFD_API, features))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def kernel_watches():
    """Can this kernel say what was written to?"""
    return kernel_protects() or softdirty.kernel_marks()


class Store:
    """Takes pages, as an archive does."""

    def __init__(self):
        self.data = bytearray()

    def add(self, view):
        first = len(self.data) // PAGE_SIZE
        self.data += view
        return first


def compare(process, copied, data):
    """Return how many pages were stored, all of which must be as they are; and how many not."""
    stored = missing = 0
    with Memory(process.host_pid) as memory, PageMap(process.host_pid) as pages:
        for m in procfs.parse_maps(procfs.read_bytes(process.host_pid, "maps")):
            if m.shared or m.name.startswith(b"[v"):
                continue
            for start, end in pages.own_pages(m.start, m.end):
                for at, stop, first in copied.look(start, end):
                    if first is None:
                        missing += (stop - at) // PAGE_SIZE
                        continue
                    stored += (stop - at) // PAGE_SIZE
                    offset = first * PAGE_SIZE
                    same = memory.read(at, stop - at) == data[offset : offset + stop - at]
                    assert same, f"{at:#x} - {stop:#x} of {m}"
    return stored, missing


def test_what_is_stored_is_what_is_there(places, debian_root, build):
    with harness.Pod(places, debian_root) as pod:
        pod.put("/tmp/churn", build(Path(__file__).with_name("churn.c")).read_bytes())
        pod.start("/tmp/churn")
        pod.wait_for("ready\n")
        leader = pod.host_pids()[min(pod.host_pids())]
        most = []
        # Marks are set on all of a mapping that has grown, and this program has only one.
        tries = 30 if kernel_protects() else 5
        while len(most) < 5 or not (any(most) or len(most) == tries):
            store = Store()
            with Ahead(pod.running(), store.add) as ahead, Freeze() as freeze:
                ahead.copy(nothing, nothing)
                frozen = freeze.stop_all(lambda: enter.pids(pod.running()))
                copied = ahead.finish(frozen)
                if not kernel_watches():
                    assert copied == {}
                    return
                (process,) = [one for one in frozen if one.host_pid == leader]
                stored, missing = compare(process, copied[leader], store.data)
            most.append(stored > missing)  # not where what is moved was merged just now
        assert any(most) or not kernel_protects()


@pytest.mark.parametrize("what", ["back", "tables"])
def test_memory_that_is_moved_is_watched_anew(places, debian_root, build, what):
    """The kernel takes the watch from all of a mapping into which what was moved is merged again.

    Source: mm/mremap.c, and fs/userfaultfd.c, mremap_userfaultfd_prep().
    """
    with harness.Pod(places, debian_root) as pod:
        pod.put("/tmp/moves", build(Path(__file__).with_name("moves.c")).read_bytes())
        pod.start("/tmp/moves", what)
        pod.wait_for("ready\n")
        pid = min(pod.host_pids())
        store = Store()
        with Ahead(pod.running(), store.add) as ahead, Freeze() as freeze:
            ahead.copy(nothing, nothing)
            for done in ("away", "back", "over"):
                pod.signal(pid)
                pod.wait_for(f"{done}\n")
                ahead.copy(nothing, nothing)
            frozen = freeze.stop_all(lambda: enter.pids(pod.running()))
            copied = ahead.finish(frozen)
            assert bool(copied) == kernel_watches()
            for process in frozen:
                if process.host_pid in copied:
                    stored, missing = compare(process, copied[process.host_pid], store.data)
                    assert stored > missing


def test_a_program_without_room_for_a_descriptor_is_watched_by_marks_only(places, debian_root):
    with harness.Pod(places, debian_root) as pod:
        pod.start("/usr/bin/python3", "-c", FULL)
        pod.wait_for("ready\n")
        leader = min(pod.host_pids())
        with Ahead(pod.running(), Store().add) as ahead, Freeze() as freeze:
            ahead.copy(nothing, nothing)
            copied = ahead.finish(freeze.stop_all(lambda: enter.pids(pod.running())))
            assert bool(copied) == softdirty.kernel_marks()
        pod.finish(leader)


def test_nothing_is_left_by_who_is_killed(places, debian_root, build):
    with harness.Pod(places, debian_root) as pod:
        pod.put("/tmp/churn", build(Path(__file__).with_name("churn.c")).read_bytes())
        pod.start("/tmp/churn")
        pod.wait_for("ready\n")
        leader = pod.host_pids()[min(pod.host_pids())]
        before = sorted(os.listdir(f"/proc/{leader}/fd"))
        command = [sys.executable, "-c", KILLED, places.prefix]
        status = -signal.SIGKILL if kernel_watches() else 0
        assert subprocess.run(command, check=False).returncode == status
        mappings = procfs.parse_smaps(procfs.read_bytes(leader, "smaps"))
        assert not any("uw" in m.flags for m in mappings)
        assert sorted(os.listdir(f"/proc/{leader}/fd")) == before
        assert pod.host_pids()[min(pod.host_pids())] == leader
        assert not pod.check()
