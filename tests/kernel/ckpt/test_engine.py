"""The process engine's other ways: what is refused, what fails, and what an older kernel lacks."""

import errno
import time
from pathlib import Path

import pytest

from ckpt import dump, raising, vdso
from ckpt.inject import Injection
from ckpt.kinds import memory, timers
from ckpt.model import NotCheckpointable
from ckpt.pagemap import PageMap
from ckpt.tracee import DoesNotStop, Tracee
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]

WAITING = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
%s
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
print("ok", flush=True)
"""
ALL_ALLOWED = """
[network]
mode = "none"
[privileges]
seccomp = "none"
capabilities = ["sys_admin", "setuid", "kill"]
"""


def started(pod, name, build):
    """Start a workload; return its pids in the pod."""
    pod.start(*harness.install(pod, name, build))
    pod.wait_for("ready\n")
    return list(pod.host_pids())


@pytest.mark.parametrize(
    ("code", "process", "what", "why"),
    [
        ("libc.unshare(0x04000000)", None, "its uts namespace", "not the pod's own"),
        ("libc.unshare(0x20000000)\nif os.fork() == 0: signal.pause()", None, "its child", "pid"),
        ("fd = libc.syscall(323, 1)", None, "descriptor", "userfaultfd"),
        ("libc.syscall(425, 4, ctypes.create_string_buffer(120))", None, "descriptor", "io_uring"),
        (
            "a = ctypes.c_ulong()\nlibc.syscall(206, 8, ctypes.byref(a))",
            None,
            "/[aio]",
            "io_setup(2)",
        ),
        (
            "if libc.fork() == 0:\n    libc.ptrace(0, 0, 0, 0); signal.pause()",
            None,
            "the process",
            "traces it",
        ),
    ],
)
def test_refusal_names_process_object_and_reason(places, debian_root, code, process, what, why):
    with harness.Pod(places, debian_root, ALL_ALLOWED) as pod:
        pod.start("/usr/bin/python3", "-c", WAITING % code)
        pod.wait_for("ready\n")
        leader = min(pod.host_pids())
        found = pod.check()
        assert any(
            what in f"{r.what}" and why in f"{r.what} {r.why}" and process in (None, r.pid)
            for r in found
        ), found
        with pytest.raises(NotCheckpointable):
            pod.dump()
        assert not pod.archive.exists()
        pod.finish(leader)


def test_a_parent_in_vfork_is_waited_for(places, debian_root, build):
    with harness.Pod(places, debian_root) as pod:
        pod.put("/tmp/vforks", build(Path(__file__).with_name("vforks.c")).read_bytes())
        pod.start("/tmp/vforks")
        pod.wait_for("ready\n")
        leader = min(pod.host_pids())
        pod.dump()
        pod.restore()
        pod.finish(leader)


def test_a_thread_that_stops_late(places, debian_root, build, monkeypatch):
    """Its leader is seized anew meanwhile, and is the last then of those that are killed."""
    real, late = Tracee.wait_stop, []

    def wait_stop(tracee, deadline):
        if tracee.tid not in leaders and not late:
            late.append(tracee.tid)
            raise DoesNotStop(tracee.tid)
        return real(tracee, deadline)

    monkeypatch.setattr(Tracee, "wait_stop", wait_stop)
    with harness.Pod(places, debian_root) as pod:
        pids = started(pod, "threads.py", build)
        leaders = set(pod.host_pids().values())
        pod.dump()
        assert late
        pod.restore()
        pod.finish(min(pids))


def test_leave_running(places, debian_root, build):
    with harness.Pod(places, debian_root) as pod:
        (leader,) = started(pod, "busy.c", build)
        for _ in range(2):
            pod.dump(leave_running=True)
        host_pid = pod.host_pids()[leader]
        for task in Path(f"/proc/{host_pid}/task").iterdir():
            assert not (task / "children").read_text()
        pod.finish(leader)


def test_restart_of_a_restarted_pod(places, debian_root, build):
    with harness.Pod(places, debian_root) as pod:
        (leader,) = started(pod, "busy.c", build)
        for _ in range(3):
            pod.dump()
            pod.restore()
        pod.finish(leader)


def test_failed_dump_leaves_the_pod_running(places, debian_root, build, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "no space")

    with harness.Pod(places, debian_root) as pod:
        (leader,) = started(pod, "busy.c", build)
        monkeypatch.setattr(dump.sealing, "seal", fail)
        with pytest.raises(OSError, match="no space"):
            pod.dump()
        assert not pod.archive.exists()
        pod.finish(leader)


def test_sleeps_are_not_late_by_what_comes_before_the_release(places, debian_root, build):
    """Another host may have to be asked, connections to be opened: the pod's clock runs."""
    with harness.Pod(places, debian_root) as pod:
        pod.start(*harness.install(pod, "sleeping.c", build))
        pod.wait_for("ready\n")
        pid = min(pod.host_pids())
        pod.dump()
        pod.restore(gate=lambda: time.sleep(1))
        pod.finish(pid)


def test_failed_restart_leaves_nothing(places, debian_root, build, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOMEM, "no memory")

    with harness.Pod(places, debian_root) as pod:
        (leader,) = started(pod, "busy.c", build)
        pod.dump()
        with monkeypatch.context() as patch:
            patch.setattr(memory, "load", fail)
            with pytest.raises(OSError, match="no memory"):
                pod.restore()
        assert pod.running() is None
        pod.restore()
        pod.finish(leader)


def test_running_pod_is_not_restarted_over(places, debian_root, build):
    with harness.Pod(places, debian_root) as pod:
        (leader,) = started(pod, "busy.c", build)
        pod.dump(leave_running=True)
        with pytest.raises(raising.RestoreError, match="is running"):
            pod.restore()
        pod.finish(leader)


@pytest.mark.parametrize("name", ["robust.c", "workers.c"])
def test_another_vdso(places, debian_root, build, monkeypatch, name):
    """Functions of the old vDSO lead to the kernel's; a second checkpoint finds them so."""
    with harness.Pod(places, debian_root) as pod:
        leader = min(started(pod, name, build))
        pod.dump()
        with monkeypatch.context() as patch:
            patch.setattr(vdso, "same", lambda *_: False)
            pod.restore()
        pod.dump()
        pod.restore()
        pod.finish(leader)


def test_without_pagemap_scan(places, debian_root, build, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOTTY, "an older kernel")

    monkeypatch.setattr(PageMap, "_scan", fail)
    with harness.Pod(places, debian_root) as pod:
        pids = started(pod, "memory.py", build)
        pod.dump()
        pod.restore()
        pod.finish(min(pids))


def test_without_ids_of_timers(places, debian_root, build, monkeypatch):
    """Timers are made and deleted until an id is reached: in the order of ids, which count up."""
    monkeypatch.setattr(timers, "_restore_ids", lambda *_, **__: False)
    with harness.Pod(places, debian_root) as pod:
        pids = started(pod, "timers.c", build)
        pod.dump()
        pod.restore()
        pod.finish(min(pids))


def test_without_a_copy(places, debian_root, build, monkeypatch):
    """Where no process can be cloned the memory is read while the pod stands still."""
    monkeypatch.setattr(Injection, "copy", lambda _: None)
    with harness.Pod(places, debian_root) as pod:
        pids = started(pod, "memory.py", build)
        pod.dump()
        pod.restore()
        pod.finish(min(pids))


def test_big_memory(places, debian_root):
    code = WAITING % "data = os.urandom(200 << 20); digest = hash(data)"
    code += "assert hash(data) == digest"
    with harness.Pod(places, debian_root) as pod:
        pod.start("/usr/bin/python3", "-c", code)
        pod.wait_for("ready\n")
        leader = min(pod.host_pids())
        report = pod.dump()
        assert report.raw_bytes > 200 << 20
        pod.restore()
        pod.finish(leader)


def test_memory_map_holds_no_scratch_area(places, debian_root, build):
    def maps(pod, leader):
        with open(f"/proc/{pod.host_pids()[leader]}/maps") as file:
            return [line.split()[0] for line in file]

    with harness.Pod(places, debian_root) as pod:
        (leader,) = started(pod, "signals.c", build)
        before = maps(pod, leader)
        pod.dump(leave_running=True)
        assert maps(pod, leader) == before
        pod.dump()
        pod.restore()
        assert maps(pod, leader) == before
        pod.finish(leader)
