"""`ckpt check` and `ckpt dump` name what cannot be carried over, and leave the pod alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.kinds import abi, sharing
from ckpt.model import NotCheckpointable
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]
PROGRAM = """
import os, socket
listener = socket.create_server(("127.0.0.1", 25))
client = socket.create_connection(("127.0.0.1", 25))
server, _ = listener.accept()
child = os.fork()
if child == 0:
    os._exit(0)
status = os.open(f"/proc/{child}/status", os.O_RDONLY)
directory = os.open(f"/proc/{child}", os.O_RDONLY)
os.waitpid(child, 0)
print("ready", flush=True)
while data := server.recv(100):
    server.send(data)
"""
MOUNTS = """
mkdir /srv/t
mount -t tmpfs any /srv/t
mkdir /srv/t/below
mount -t tmpfs any /srv/t/below
mkdir /srv/p
mount -t proc any /srv/p
exec 3< /srv/p/self/comm
sleep 1000
"""
HIDDEN = "mkdir -p /srv/a/b; mount -t tmpfs any /srv/a/b; mount -t tmpfs any /srv/a"
NOTIFIED = """
import ctypes, signal
libc = ctypes.CDLL(None)
queue = libc.mq_open(b"/q", 0o102, 0o600, None)
event = (ctypes.c_int * 16)(0, 0, signal.SIGUSR2, 0)
assert libc.mq_notify(queue, event) == 0
print("ready", flush=True)
signal.pause()
"""
SIBLINGS = """
import ctypes, signal
call = ctypes.CDLL(None).syscall
CLONE, UNSHARE, CLONE_FILES = 56, 272, 0x400
for _ in range(2):
    if call(CLONE, CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        signal.pause()
assert call(UNSHARE, CLONE_FILES) == 0
print("ready", flush=True)
signal.pause()
"""
ENDED = """
import os, signal
pid = os.fork()
if pid == 0:
    signal.pause()
os.chdir(f"/proc/{pid}")
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
print("ready", flush=True)
signal.pause()
"""
HUNG_UP = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
master, slave = os.openpty()
os.close(os.open(os.ttyname(slave), os.O_RDWR))
os.close(master)
print("ready", flush=True)
signal.pause()
"""
EXPECTED = {
    "descriptor 1": "its other end is held outside of the pod",
    "descriptor 6": "its process has ended",
    "descriptor 7": "its process has ended",
}


def test_what_is_in_the_way_is_named(places, debian_root):
    ckpt = Path(sys.executable).with_name("ckpt")
    with harness.Pod(places, debian_root) as pod:
        pod.put("/tmp/program.py", PROGRAM)
        launcher = Path(sys.executable).with_name("launcher")
        argv = [launcher, "run", pod.name, "/usr/bin/python3", "-I", "/tmp/program.py"]
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout.readline() == "ready\n"
            found = {r.what.partition(" (")[0]: r.why for r in pod.check()}
            dump = subprocess.run(
                [ckpt, "dump", pod.name, "-o", pod.archive],
                capture_output=True,
                text=True,
                check=False,
            )
            before = pod.host_pids()
            harness.tool("launcher", "kill", pod.name)
        for what, why in EXPECTED.items():
            assert found[what].startswith(why), found
            assert why in dump.stderr
        assert dump.returncode == 1
        assert "Traceback" not in dump.stderr
        assert not pod.archive.exists()
        assert len(before) == 1


def test_mounts_upon_mounts_are_in_the_way(places, debian_root):
    toml = '[network]\nmode = "none"\n[privileges]\nprofile = "debian"\n'
    with harness.Pod(places, debian_root, toml) as pod:
        pod.start("/bin/sh", "-ec", MOUNTS)
        mounted, opened = harness.poll(lambda: len(f := pod.check()) == 2 and f, "mounts")
        harness.tool("launcher", "exec", pod.name, "/bin/umount", "/srv/t/below")
        left = pod.check()

    assert mounted.what == "the tmpfs that is mounted on /srv/t/below"
    assert mounted.hint == "umount /srv/t/below, in the pod"
    assert opened.what.startswith("descriptor 3 (/srv/p/")
    assert [refusal.what for refusal in left] == [opened.what]


def test_mounts_that_no_monitor_has_made_are_in_the_way(places, debian_root):
    toml = """
        network.mode = "none"
        privileges = { seccomp = "none", add_capabilities = ["sys_admin"] }
    """
    with harness.Pod(places, debian_root, toml) as pod:
        pod.start("/bin/sh", "-ec", "mount --bind /usr /srv; exec sleep 1000")
        (found,) = harness.poll(pod.check, "mount")
        harness.tool("launcher", "exec", pod.name, "/bin/umount", "/srv")
        assert not pod.check()
        harness.tool("launcher", "exec", pod.name, "/bin/sh", "-ec", HIDDEN)
        with pytest.raises(NotCheckpointable) as hidden:
            pod.dump()
    assert "the tmpfs that is mounted on /srv/a/b: another mount hides what is in it" in str(
        hidden.value
    )
    assert found.what.endswith("that is mounted on /srv")
    assert found.hint == "umount /srv, in the pod"


def test_who_is_to_be_told_of_a_message_is_in_the_way(places, debian_root):
    with harness.Pod(places, debian_root) as pod:
        pod.put("/tmp/program.py", NOTIFIED)
        pod.start("/usr/bin/python3", "-I", "/tmp/program.py")
        pod.wait_for("ready")
        (found,) = pod.check()

    assert found.what == "POSIX message queue /q"
    assert "mq_notify(3)" in found.why


def test_what_siblings_share_without_their_parent_is_in_the_way(places, debian_root):
    with harness.Pod(places, debian_root) as pod:
        pod.start("/usr/bin/python3", "-c", SIBLINGS)
        pod.wait_for("ready\n")
        (found,) = pod.check()
        with pytest.raises(NotCheckpointable) as refused:
            pod.dump()
    assert (found.what, found.why) == ("its table of descriptors", sharing.WHY)
    assert refused.value.refusals == (found,)


@pytest.mark.parametrize(
    ("program", "why"), [(ENDED, "it is below /proc"), (HUNG_UP, "its terminal was hung up")]
)
def test_what_is_gone_but_open_is_in_the_way(places, debian_root, program, why):
    with harness.Pod(places, debian_root) as pod:
        pod.start("/usr/bin/python3", "-c", program)
        pod.wait_for("ready\n")
        with pytest.raises(NotCheckpointable, match=why):
            pod.dump()


def test_what_this_kernel_does_not_show_is_in_the_way(places, debian_root, build, monkeypatch):
    """Linux 6.1: of a process whose first thread has ended before others, the open files."""
    monkeypatch.setattr(abi, "_PIDFD_THREAD", 1 << 30)
    with harness.Pod(places, debian_root) as pod:
        pod.start(*harness.install(pod, "first_thread.c", build))
        pod.wait_for("ready\n")
        (found,) = pod.check()
        with pytest.raises(NotCheckpointable) as refused:
            pod.dump()
    assert found.what == "its first thread"
    assert refused.value.refusals == (found,)
