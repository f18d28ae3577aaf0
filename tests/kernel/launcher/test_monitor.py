"""Emulated calls: what the pod's monitor carries out, refuses, and survives."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from launcher import enter, pods

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "namespaces")


@pytest.fixture
def debian(pod):
    """A running pod of profile debian."""
    pod.configure("a", '[privileges]\nprofile = "debian"')
    pod.create("a")
    return pod


def sh(pod, script):
    return pod.launch("exec", "a", "/bin/sh", "-ec", script).stdout


def python(pod, script, *argv):
    return pod.launch("exec", "a", "/usr/bin/python3", "-c", LIBRARY + script, *argv).stdout


LIBRARY = r"""
import ctypes, errno, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def mount(target, fstype, flags=0, options=None, source=b"any"):
    if libc.mount(source, target, fstype, ctypes.c_ulong(flags), options) == -1:
        return errno.errorcode[ctypes.get_errno()]
    return "ok"
def umount(target, flags=0):
    if libc.umount2(target, flags) == -1:
        return errno.errorcode[ctypes.get_errno()]
    return "ok"
def mounted():
    return [line.split()[1:4] for line in open("/proc/self/mounts") if line.startswith("(pod) ")]
"""


def test_tmpfs_and_proc_are_mounted_with_options_forced_upon_them(debian):
    out = sh(
        debian,
        """
        mkdir /srv/t /srv/p
        mount -t tmpfs -o size=1m,mode=750,noexec any /srv/t
        mount -t proc proc /srv/p
        grep ' /srv/' /proc/self/mounts
        stat -c '%a' /srv/t
        ls /srv/p | grep -v '^[0-9]*$'
        cat /srv/p/1/comm
        umount /srv/p /srv/t
        ! grep ' /srv/' /proc/self/mounts
        """,
    )

    assert out.splitlines() == [
        "(pod) /srv/t tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,nr_inodes=65536,mode=750"
        " 0 0",
        "(pod) /srv/p proc rw,nosuid,nodev,noexec,relatime,subset=pid 0 0",
        "750",
        "self",
        "thread-self",
        "memfd:init",  # the pod's own process 1
    ]


TRIED = r"""
os.makedirs("/srv/t")
os.symlink("/srv/t", "/srv/link")
page = 4096
tried = {
    "bind": mount(b"/srv/t", None, 4096, source=b"/"),
    "remount": mount(b"/proc/sys", None, 32),
    "remount bind": mount(b"/proc/sys", None, 32 | 4096),
    "private": mount(b"/", None, 1 << 18),
    "move": mount(b"/srv/t", None, 8192, source=b"/proc/kcore"),
    "no type": mount(b"/srv/t", None),
    "no target": mount(None, b"tmpfs"),
    "unreadable": mount(ctypes.c_void_p(page), b"tmpfs"),
    "nowhere": mount(b"/nowhere", b"tmpfs"),
    "a file": mount(b"/etc/passwd", b"tmpfs"),
    "endless": mount(b"x" * 5000, b"tmpfs"),
    "bad option": mount(b"/srv/t", b"tmpfs", options=b"huge=always"),
    "bad size": mount(b"/srv/t", b"tmpfs", options=b"size=-1"),
    "all of proc": mount(b"/srv/t", b"proc", options=b"subset=all"),
    "not a mount": umount(b"/srv/t"),
    "by link": umount(b"/srv/link", 8),
    "expire": umount(b"/srv/t", 4),
    **{f"type {t}": mount(b"/srv/t", t.encode()) for t in
       ("ext4", "overlay", "cgroup", "cgroup2", "sysfs", "bpf", "devpts", "ramfs", "fuse")},
    **{f"over {at}": mount(at.encode(), "tmpfs".encode()) for at in
       ("/", "/proc", "/proc/sys", "/proc/1", "/sys", "/dev", "/dev/pts", "/dev/shm",
        "/sys/devices/system/cpu")},
    **{f"from {at}": umount(at.encode()) for at in
       ("/", "/proc", "/proc/sys", "/proc/cmdline", "/sys", "/dev", "/dev/pts", "/dev/shm")},
}
os.setresuid(1000, 1000, 0)
tried["as user"] = mount(b"/srv/t", b"tmpfs")
for name, result in tried.items():
    print(f"{name}: {result}")
"""
REFUSED = {
    "bind": "EPERM", "remount": "EPERM", "remount bind": "EPERM", "private": "EPERM",
    "move": "EPERM", "no type": "EINVAL", "no target": "EFAULT", "unreadable": "EFAULT",
    "nowhere": "ENOENT", "a file": "ENOTDIR", "endless": "ENAMETOOLONG", "bad option": "EINVAL",
    "bad size": "EINVAL", "all of proc": "EINVAL", "not a mount": "EINVAL", "by link": "EINVAL",
    "expire": "EPERM", "as user": "EPERM",
}  # fmt: skip


def test_nothing_else_is_mounted_and_nothing_of_the_pod_unmounted(debian):
    before = sh(debian, "cat /proc/1/mountinfo || cat /proc/self/mountinfo")

    out = python(debian, TRIED)

    tried = dict(line.split(": ") for line in out.splitlines())
    assert {name: tried.pop(name) for name in REFUSED} == REFUSED
    kinds = {"type": "EPERM", "over": "EBUSY", "from": "EPERM"}
    assert len(tried) == 26
    assert tried == {name: kinds[name.split()[0]] for name in tried}
    assert sh(debian, "cat /proc/1/mountinfo || cat /proc/self/mountinfo") == before


def test_size_and_number_are_bounded(debian):
    out = python(
        debian,
        r"""
for n in range(66):
    os.makedirs(f"/srv/{n}")
print(mount(b"/srv/0", b"tmpfs", options=b"size=64g,nr_inodes=1g"), mounted()[0][2])
print(mount(b"/srv/0", b"tmpfs", options=b"size=0"), mounted()[1][2])
print([mount(f"/srv/{n}".encode(), b"tmpfs") for n in range(1, 66)])
print([umount(b"/srv/0"), umount(b"/srv/0"), umount(b"/srv/0"), mount(b"/srv/65", b"tmpfs")])
""",
    )

    bounded = "ok rw,nosuid,nodev,relatime,size=262144k,nr_inodes=65536"
    assert out.splitlines() == [
        bounded,
        bounded,
        str(["ok"] * 62 + ["ENOSPC"] * 3),
        str(["ok", "ok", "EINVAL", "ok"]),
    ]


def test_paths_are_walked_as_the_caller_would(debian):
    """From its own root and directory; a thread of a process may have others than the rest."""
    out = python(
        debian,
        r"""
os.makedirs("/srv/jail/inner/deep")
os.symlink("/inner", "/srv/jail/link")
os.chdir("/srv/jail/inner")
print(mount(b"deep", b"tmpfs"), mounted()[-1][0])
def other():
    libc.unshare(0x200)
    os.chroot("/srv/jail")
    os.chdir("/inner")
    print(mount(b"../link", b"tmpfs"), mount(b"/../../inner", b"tmpfs"))
thread = threading.Thread(target=other)
thread.start()
thread.join()
print([point for point, _, _ in mounted()])
""",
    )

    assert out.splitlines() == [
        "ok /srv/jail/inner/deep",
        "ok ok",
        "['/srv/jail/inner/deep', '/srv/jail/inner', '/srv/jail/inner']",
    ]


def test_what_was_judged_is_what_is_done(debian):
    """Another thread rewrites the type while the monitor works."""
    out = python(
        debian,
        r"""
os.makedirs("/srv/t")
kind = ctypes.create_string_buffer(b"tmpfs", 8)
over = False
def rewrite():
    while not over:
        kind[:5] = b"sysfs"
        kind[:5] = b"tmpfs"
sys.setswitchinterval(1e-6)
thread = threading.Thread(target=rewrite)
thread.start()
results = set()
for _ in range(300):
    results.add(mount(b"/srv/t", kind))
    assert all(fstype == "tmpfs" for _, fstype, _ in mounted()), mounted()
    while mounted():
        assert umount(b"/srv/t") == "ok"
over = True
thread.join()
print(sorted(results - {"ok"}))
""",
    )

    assert out.strip() in ("['EPERM']", "[]")


def monitors(pod):
    return running(pod, "launcher.monitor")


def holders(pod):
    """The holder, and the mounter, which is forked from it."""
    return running(pod, "launcher.holding")


def running(pod, module):
    found = []
    mark = b"AUTOPOD_PREFIX=" + os.fsencode(pod.places.prefix)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            argv, environment = (
                (entry / name).read_bytes().split(b"\0") for name in ("cmdline", "environ")
            )
            if module.encode() in argv and mark in environment:
                found.append(int(entry.name))
        except OSError:  # it has ended, or is nobody's to look into
            continue
    return found


LOAD = r"""
target = f"/srv/{sys.argv[1]}".encode()
os.makedirs(target)
rounds = os.open(target + b".rounds", os.O_CREAT | os.O_WRONLY)
while not os.path.exists("/srv/stop"):
    for kind in (b"ext4", b"sysfs"):
        result = mount(target, kind)
        assert result == "EPERM", result
    result = mount(target, b"tmpfs")
    assert result == "ok", result
    result = umount(target)
    assert result == "ok", result
    os.write(rounds, b".")
print("done", flush=True)
"""


def log(pod):
    return pod.places.log("a").read_text()


def test_the_monitor_is_killed_under_load(debian):
    """Callers wait for the next; every call gets what it would have got, and none is left out."""
    srv = debian.places.root("a") / "srv"
    done = [srv / f"{worker}.rounds" for worker in "12"]
    for worker in "12":
        debian.launch("start", "a", "/usr/bin/python3", "-c", LIBRARY + LOAD, worker)
    wait_until(lambda: all(file.exists() for file in done))

    killed = []
    for _ in range(4):
        (monitor,) = wait_until(lambda: [m for m in monitors(debian) if m not in killed])
        assert sh(debian, "umask") == "0022\n"
        os.kill(monitor, signal.SIGKILL)
        killed.append(monitor)
        before = [file.stat().st_size for file in done]
        wait_until(
            lambda before=before: all(
                file.stat().st_size > size + 3 for file, size in zip(done, before, strict=True)
            )
        )
    (srv / "stop").touch()
    wait_until(lambda: not enter.pids(debian.pod("a")))

    assert log(debian) == "done\ndone\n"


ONE = r"""
os.makedirs("/srv/t")
print("ready", flush=True)
while not os.path.exists("/srv/go"):
    time.sleep(0.01)
print("asked", mount(b"/srv/t", b"tmpfs"), [point for point, _, _ in mounted()], flush=True)
"""


@pytest.fixture
def stuck(debian):
    """A call that the monitor has received, and the mounter, which is stopped, has not done."""
    debian.launch("start", "a", "/usr/bin/python3", "-c", LIBRARY + ONE)
    wait_until(lambda: "ready" in log(debian))
    (monitor,) = wait_until(lambda: monitors(debian))
    (mounter,) = {p for p in holders(debian) if not _leads_session(p)}
    os.kill(mounter, signal.SIGSTOP)
    (debian.places.root("a") / "srv/go").touch()
    wait_until(lambda: in_flight(mounter))
    return debian, monitor, mounter


def in_flight(mounter):
    """Does a request wait in the mounter's socket?"""
    sockets = {os.readlink(fd) for fd in Path(f"/proc/{mounter}/fd").iterdir()}
    shown = subprocess.run(["ss", "-xH", "-a"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in shown.splitlines()]
    return any(int(row[2]) for row in rows if f"socket:[{row[5]}]" in sockets)


def test_a_call_outlives_the_monitor_that_received_it(stuck):
    pod, monitor, _ = stuck

    os.kill(monitor, signal.SIGKILL)

    wait_until(lambda: "asked ok ['/srv/t']" in log(pod))


def test_a_call_that_was_done_is_not_done_again(stuck):
    """The monitor is killed after the mounter has mounted, and before the caller was told."""
    pod, monitor, mounter = stuck
    mountinfo = Path(f"/proc/{enter.pids(pod.pod('a'))[0]}/mountinfo")

    os.kill(monitor, signal.SIGSTOP)
    os.kill(mounter, signal.SIGCONT)
    wait_until(lambda: " /srv/t " in mountinfo.read_text())
    os.kill(monitor, signal.SIGKILL)

    wait_until(lambda: "asked ok ['/srv/t']" in log(pod))


def test_with_a_terminal(debian):
    """Its master and the listener have the same holder."""
    script = "mkdir /srv/t; mount -t tmpfs any /srv/t && grep -c /srv/t /proc/self/mounts"

    out = debian.launch("exec", "-t", "a", "/bin/sh", "-c", script).stdout

    assert out.strip() == "1"


def test_the_mounter_is_killed(debian):
    debian.launch("start", "a", "/bin/sleep", "100")
    sh(debian, "mkdir /srv/t; mount -t tmpfs any /srv/t")
    (monitor,) = monitors(debian)
    (mounter,) = {p for p in holders(debian) if not _leads_session(p)}

    os.kill(mounter, signal.SIGKILL)
    wait_until(lambda: monitors(debian) not in ([], [monitor]))

    assert sh(debian, "umount /srv/t; mount -t tmpfs any /srv/t; echo ok") == "ok\n"


def _leads_session(pid):
    return os.getsid(pid) == pid


def test_the_holder_is_killed(debian):
    """What the monitor has, it goes on with; new programs get a new holder."""
    script = "mkdir /srv/$1; echo ready; while ! [ -e /srv/stop ]; do sleep 0.01; done\n"
    script += "mount -t tmpfs any /srv/$1; umount /srv/$1; echo done"
    debian.launch("start", "a", "/bin/sh", "-ec", script, "sh", "old")
    wait_until(lambda: "ready" in log(debian))
    (holder,) = {p for p in holders(debian) if _leads_session(p)}

    os.kill(holder, signal.SIGKILL)
    debian.launch("start", "a", "/bin/sh", "-ec", script, "sh", "new")
    (debian.places.root("a") / "srv/stop").touch()
    wait_until(lambda: log(debian).count("done") == 2)

    pods.destroy(debian.places, "a")
    wait_until(lambda: not monitors(debian) and not holders(debian))


@pytest.mark.parametrize("profile", ["strict", "service"])
def test_other_pods_need_no_monitor(pod, profile):
    pod.configure("a", f'[privileges]\nprofile = "{profile}"')
    pod.launch("start", "a", "/bin/sleep", "100")

    assert not monitors(pod) + holders(pod)


def test_every_program_is_confined_alike_there_too(debian):
    debian.launch("start", "a", "/bin/sh", "-c", "cat /proc/self/status; sleep 100")
    wait_until(lambda: "ctxt" in log(debian))

    def confinement(text):
        lines = dict(line.split(":\t", 1) for line in text.splitlines())
        return {key: lines[key] for key in ("CapBnd", "CapEff", "CapInh", "NoNewPrivs", "Seccomp",
                                            "Seccomp_filters")}  # fmt: skip

    started, executed = log(debian), sh(debian, "cat /proc/self/status")
    assert confinement(started) == confinement(executed)
    assert confinement(executed)["Seccomp_filters"] == "1"
    assert sh(debian, "ls /proc/self/fd | wc -l") == "4\n"  # no listener is left in it
