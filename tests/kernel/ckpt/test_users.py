"""Pods with a user namespace, checkpointed and restarted: their own numbers last, no others."""

import os
from pathlib import Path

import msgspec
import pytest

from ckpt import restore
from ckpt.archive import keys
from ckpt.archive.read import open_archive
from launcher import config, userns, users
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

PLAIN = '[network]\nmode = "none"\n'
NAMESPACE = "[user]\nnamespace = true\n"
PROGRAM = """
import os, signal, socket, threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.umask(0)
open("/dev/shm/root", "x").close()
os.setxattr("/dev/shm/root", "system.posix_acl_access", bytes.fromhex(
    "02000000" "01000600ffffffff" "0200040021000000" "04000400ffffffff" "10000400ffffffff"
    "20000000ffffffff"))
os.setgroups([5, 100])
os.setresgid(34, 34, 34)
os.setresuid(33, 33, 33)
with open("/dev/shm/file", "x+") as file, open("/tmp/gone", "x+") as gone:
    os.unlink("/tmp/gone")
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    threading.Thread(target=signal.pause, daemon=True).start()
    def facts():
        peer = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:].hex()
        owners = [(s.st_uid, s.st_gid, oct(s.st_mode)) for s in map(os.fstat, (
            file.fileno(), gone.fileno(), reader, ours.fileno()))]
        acl = os.getxattr("/dev/shm/root", "system.posix_acl_access").hex()
        return os.getresuid(), os.getresgid(), os.getgroups(), peer, owners, acl
    before = facts()
    print("ready", flush=True)
    while signal.sigwait({signal.SIGUSR1}):
        print("ok" if facts() == before else f"fail: {before} {facts()}", flush=True)
"""


@pytest.fixture
def running(places, debian_root):
    """A pod with a user namespace that runs the program, as its user 33, in two threads."""
    with harness.Pod(places, debian_root, PLAIN + NAMESPACE) as pod:
        start(pod)
        yield pod
        users.forget(places, "other")


def start(pod):
    pod.put("/tmp/program.py", PROGRAM)
    (pod.root / "tmp").chmod(0o1777)
    pod.start("/usr/bin/python3", "-I", "/tmp/program.py")
    pod.wait_for("ready\n")


def check(pod, base):
    """All threads are user 33 of those that begin at *base* on the host; all is as it was."""
    ((pid, host_pid),) = pod.host_pids().items()
    tasks = [*Path(f"/proc/{host_pid}/task").iterdir()]
    assert len(tasks) == 2
    for task in tasks:
        lines = (task / "status").read_text().splitlines()
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert set(fields["Uid"].split()) == {str((base or 0) + 33)}
        assert fields["Groups"].split() == [str((base or 0) + group) for group in (5, 100)]
        assert int(fields["CapEff"], 16) == 0
    assert userns.base(host_pid) == base
    owner = os.stat(f"/proc/{pod.running().init_pid}/root/dev/shm/file")
    assert owner.st_uid == (base or 0) + 33
    log = pod.log().count("ok\n")
    pod.signal(pid)
    pod.wait_for_match(r"ok\n" * (log + 1) + r"|fail.*")
    assert "fail" not in pod.log()


def configure(pod, text):
    """Change the configuration of a pod that has ended, and mount its root for that."""
    pod.places.config(pod.name).write_text(text)
    base = users.ensure(pod.places, config.load(pod.places, pod.name))
    harness.tool("stackfs", "umount", pod.name)
    harness.tool("stackfs", "mount", pod.name, "--shift", str(base or 0))
    return base


def test_an_archive_has_the_pod_s_own_numbers(running):
    running.dump()
    with open_archive(running.archive, keys.load_trusted(running.places.trust())) as archive:
        model = archive.model()
        assert config.parse(archive.config(), "w", Path("w")).user.namespace
    found = {}
    parts = [p for process in model.processes for t in process.threads for p in t.parts]
    for part in (*parts, *model.parts, *(file.part for file in model.files)):
        found.setdefault(part.kind, []).append(msgspec.msgpack.decode(part.state))
    for credentials in found["credentials"]:
        assert (credentials["users"], credentials["groups"]) == ([33] * 4, [34] * 4)
        assert credentials["supplementary"] == [5, 100]
    owners = {
        entry["path"]: (entry["attributes"]["uid"], entry["attributes"]["gid"])
        for mount in found["tmpfs"]
        if mount["point"] == b"/dev/shm"
        for entry in mount["entries"]
    }
    assert owners == {b".": (0, 0), b"root": (0, 0), b"file": (33, 34)}


def test_it_goes_on_and_again_with_other_ids(running):
    base = userns.base(running.running().init_pid)
    check(running, base)
    running.dump(leave_running=True)
    check(running, base)
    for _ in range(2):
        running.dump()
        base += running.move_users() if users.base(running.places, "other") is None else 0
        running.restore()
        check(running, base)


def test_a_pod_gets_a_namespace_by_a_restart_and_loses_it(places, debian_root):
    with harness.Pod(places, debian_root, PLAIN) as pod:
        start(pod)
        check(pod, None)
        pod.dump()
        base = configure(pod, PLAIN + NAMESPACE)
        assert base is not None
        pod.restore()
        check(pod, base)
        pod.dump()
        assert configure(pod, PLAIN) is None
        pod.restore()
        check(pod, None)


def test_a_user_that_a_namespace_cannot_have_is_refused(places, debian_root):
    with harness.Pod(places, debian_root, PLAIN) as pod:
        pod.start("/usr/bin/python3", "-c", "import os, signal; os.setgroups([70000]); "
                  "signal.pause()")  # fmt: skip
        harness.poll(lambda: any("70000" in Path(f"/proc/{p}/status").read_text()
                                 for p in pod.host_pids().values()), "its group")  # fmt: skip
        pod.dump()
        configure(pod, PLAIN + NAMESPACE)
        with pytest.raises(restore.RestoreError, match="70000 is beyond") as refused:
            pod.restore()
        assert refused.value.hint == "set user.namespace = false"
        assert pod.running() is None


def test_the_restarted_pod_holds_and_takes_in_programs(running):
    running.dump()
    running.restore()
    assert harness.tool("launcher", "exec", "w", "/usr/bin/id", "-u") == "0\n"
    harness.tool("launcher", "probe", "w")
