"""A dump or a restart that is killed, or fails, does no harm."""

import contextlib
import itertools
import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest

from ckpt import abi, stack
from ckpt.layers import InstallError
from ckpt.model import NotCheckpointable
from launcher.errors import PodError
from launcher.lock import is_locked, locked, wait_until_free
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]


def traced(host_pid):
    """Is any thread of the process traced?"""
    tasks = Path(f"/proc/{host_pid}/task").iterdir()
    return any("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)


def has_ended(pid):
    """Is our child a zombie?"""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def in_child(work):
    """Run *work* in a forked process; return its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    return pid


def kill_at(pid, moment):
    while time.monotonic() < moment:
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def dying_dump(pod, count, *, after):
    """Dump, and die just before or after the *count*-th ptrace(2) call."""
    real, calls = abi.ptrace, itertools.count(1)

    def ptrace(*args):
        last = next(calls) == count
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    abi.ptrace = ptrace
    pod.dump(leave_running=True)


def test_killed_dump_leaves_the_pod_running(places, debian_root, build):
    chance = random.Random(7)
    with harness.Pod(places, debian_root) as pod:
        pod.start(*harness.install(pod, "busy.c", build))
        pod.wait_for("ready\n")
        ((pid, host_pid),) = pod.host_pids().items()

        def still_runs():
            harness.poll(lambda: not traced(host_pid), "end of the tracing")
            harness.poll(lambda: list(pod.host_pids()) == [pid], "end of the copies")

        for count in [*range(10, 60, 3), *range(60, 600, 31)]:
            dumper = in_child(lambda n=count: dying_dump(pod, n, after=n % 2))
            os.waitpid(dumper, 0)
            still_runs()
        for _ in range(15):
            dumper = in_child(lambda: pod.dump(leave_running=True))
            harness.poll(lambda d=dumper: traced(host_pid) or has_ended(d), "tracer")
            kill_at(dumper, time.monotonic() + chance.uniform(0, 0.02))
            still_runs()
        pod.archive.unlink(missing_ok=True)
        pod.dump()
        pod.restore()
        pod.finish(pid)


def dumped(pod):
    """Dump the pod if a program runs in it; True when none does any more.

    A child of the killed command may still work on it; or it ends while it is dumped.
    """
    with contextlib.suppress(PodError, NotCheckpointable, OSError):
        pod.dump()
    return not (pod.running() and pod.host_pids())


def test_killed_restore_leaves_room_for_the_next(places, debian_root, build):
    chance = random.Random(7)
    with harness.Pod(places, debian_root) as pod:
        pod.start(*harness.install(pod, "busy.c", build))
        pod.wait_for("ready\n")
        pids = pod.host_pids().keys()
        pod.dump()
        for _ in range(8):
            killed = in_child(pod.restore)
            kill_at(killed, time.monotonic() + chance.uniform(0, 0.3))
            if pod.running() and pod.host_pids():  # it was let go just before, or ends with it
                harness.poll(lambda: dumped(pod), "end of what was begun")
        wait_until_free(places, pod.name, harness.DEADLINE_S)  # the lock's own patience is less
        pod.restore()
        assert pod.host_pids().keys() == pids
        pod.finish(min(pids))


def test_what_a_killed_restart_has_begun_keeps_the_lock(places):
    """Or it would mount the root beneath the hands of the next one."""

    def begin():
        with locked(places, "w"):
            stack.begin_mount(places, "w")
            die()

    os.waitpid(in_child(begin), 0)
    assert is_locked(places, "w")
    wait_until_free(places, "w", harness.DEADLINE_S)
    assert not is_locked(places, "w")


WRITER = """\
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with open("/var/tmp/written", "w") as file:
    file.write("as it was")
    file.flush()
    print("ready", flush=True)
    signal.sigwait({signal.SIGUSR1})
    print("ok" if open("/var/tmp/written").read() == "as it was" else "fail: changed", flush=True)
"""


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def refuse():
    raise PodError("refused at the gate")


@pytest.mark.parametrize("mounted", [True, False])
@pytest.mark.parametrize("gate", [refuse, die])
def test_a_broken_restart_has_written_nothing(places, debian_root, gate, mounted):
    """It opens the pod's files for writing, which copies them up: the next one begins anew."""
    with harness.Pod(places, debian_root) as pod:
        pod.put("/var/tmp/writer.py", WRITER)
        pod.start("/usr/bin/python3", "/var/tmp/writer.py")
        pod.wait_for("ready\n")
        (pid,) = pod.host_pids()
        pod.dump()
        if not mounted:
            harness.tool("stackfs", "umount", pod.name)
        broken = in_child(lambda: pod.restore(gate=gate))
        assert os.waitpid(broken, 0)[1]
        harness.poll(lambda: not pod.running() or not pod.host_pids(), "end of what was begun")
        pod.restore()
        pod.finish(pid)


def test_a_restart_of_threads_that_is_refused_ends(places, debian_root, build):
    """They are reaped before their leaders, which the kernel reports last."""
    with harness.Pod(places, debian_root) as pod:
        pod.start(*harness.install(pod, "threads.py", build))
        pod.wait_for("ready\n")
        pid = min(pod.host_pids())
        pod.dump()
        with pytest.raises(PodError, match="refused at the gate"):
            pod.restore(gate=refuse)
        pod.restore()
        pod.finish(pid)


def test_what_a_pod_writes_after_a_restart_stays(places, debian_root):
    """A restart was killed, and the pod was started otherwise since: its files are its own."""
    with harness.Pod(places, debian_root) as pod:
        pod.put("/var/tmp/writer.py", WRITER)
        pod.start("/usr/bin/python3", "/var/tmp/writer.py")
        pod.wait_for("ready\n")
        pod.dump()
        os.waitpid(in_child(lambda: pod.restore(gate=die)), 0)
        harness.poll(lambda: not pod.running() or not pod.host_pids(), "end of what was begun")
        harness.tool("launcher", "stop", pod.name)
        pod.start("/bin/sh", "-c", "echo mine > /var/tmp/written")
        harness.poll(lambda: not pod.host_pids(), "end of the program")
        with pytest.raises(InstallError, match=r"files that it has written|files written after"):
            pod.restore()
        assert (pod.root / "var/tmp/written").read_text() == "mine\n"


GHOSTS = """\
import os, signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.chdir("/var/tmp")
os.mkdir("gone")
held = [open("gone/file", "w"), socket.socket(socket.AF_UNIX)]
held[1].bind("gone/socket")
os.mkfifo("gone/fifo")
held.append(os.open("gone/fifo", os.O_RDWR))
for name in ("file", "socket", "fifo"):
    os.unlink(f"gone/{name}")
os.rmdir("gone")
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
print("ok", flush=True)
"""


def die_with_names(pod, number):
    """Restart the pod; who rebuilds the files kills both when *number* names are to go again."""
    parent, real, removed = os.getpid(), os.unlink, itertools.count(1)

    def unlink(*args, **kwargs):
        if os.getpid() != parent and next(removed) == number:
            os.kill(parent, signal.SIGKILL)
            signal.pause()
        real(*args, **kwargs)

    os.unlink = unlink
    pod.restore()


@pytest.mark.parametrize(("then", "number"), [("started", 1), ("started", 3), ("restarted", 2)])
def test_a_name_that_was_lent_goes_when_the_restart_is_killed(places, debian_root, then, number):
    with harness.Pod(places, debian_root) as pod:
        pod.put("/var/tmp/ghosts.py", GHOSTS)
        before = sorted(os.listdir(pod.root / "var/tmp"))
        pod.start("/usr/bin/python3", "/var/tmp/ghosts.py")
        pod.wait_for("ready\n")
        (pid,) = pod.host_pids()
        pod.dump()
        broken = in_child(lambda: die_with_names(pod, number))
        assert os.WTERMSIG(os.waitpid(broken, 0)[1]) == signal.SIGKILL
        harness.poll(lambda: not pod.running() or not pod.host_pids(), "end of what was begun")
        assert os.listdir(pod.root / "var/tmp/gone")
        if then == "restarted":
            pod.restore()
            pod.finish(pid)
        else:
            harness.tool("launcher", "stop", pod.name)
            pod.start("/bin/true")
        assert sorted(os.listdir(pod.root / "var/tmp")) == before


def test_a_name_that_was_lent_is_the_pods_wherever_links_lead(places, debian_root, tmp_path):
    (tmp_path / "name").touch()
    with harness.Pod(places, debian_root) as pod:
        (pod.root / "inside").symlink_to("/tmp")
        (pod.root / "outside").symlink_to(tmp_path)
        (pod.root / "loop").symlink_to("loop")
        pod.put("/tmp/name", "")
        names = (b"/inside/name", b"/outside/name", b"/loop/name", b"/none/name")
        places.restarting(pod.name).write_bytes(b"\0".join([*names, b""]))
        pod.start("/bin/true")
        assert not (pod.root / "tmp/name").exists()
        assert (tmp_path / "name").exists()
        assert not places.restarting(pod.name).exists()
