"""Pods with a user namespace: root inside, nobody outside."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import config, enter, network, userns, users

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "namespaces", "fuse")

STACKFS = Path(sys.executable).with_name("stackfs")
NS_GET_OWNER_UID = 0xB704  # <linux/nsfs.h>
NAMESPACE = "[user]\nnamespace = true\n"


@pytest.fixture
def shifted(host, debian_root):
    """Make pods with a user namespace over a full Debian tree; return what adds one."""
    added = []

    def add(name, text="", tree=debian_root):
        host.configure(name, NAMESPACE + text)
        base = users.ensure(host.places, config.load(host.places, name))
        argv = [STACKFS, "mount", name, "--lower", tree, "--shift", str(base)]
        subprocess.run(argv, check=True)
        added.append(name)
        return base

    yield add
    for name in added:
        host.launch("kill", name, expect=None)
        network.remove_network(host.places, name)
        subprocess.run([STACKFS, "umount", name], check=True)


def sh(host, name, script, verb="run", expect=0):
    return host.launch(verb, name, "/bin/sh", "-c", script, expect=expect).stdout


def test_root_inside_is_nobody_outside(host, shifted):
    base = shifted("a")
    script = "id -u; id -g; id -G; cat /proc/self/uid_map; touch /new; stat -c '%u %g' /new /etc"

    out = sh(host, "a", script).splitlines()

    assert out[:3] == ["0", "0", "0"]
    assert out[3].split() == ["0", str(base), "65536"]
    assert out[4:] == ["0 0", "0 0"]
    new = host.places.state("a") / "upper/new"
    assert (new.stat().st_uid, new.stat().st_gid) == (0, 0)


def test_processes_are_the_host_s_nobody(host, shifted):
    base = shifted("a")
    host.launch("start", "a", "/bin/sleep", "1000")
    host.launch("exec", "a", "/bin/sh", "-c", "setpriv --reuid 33 --regid 33 --clear-groups "
                "sleep 1000 >/dev/null 2>&1 &")  # fmt: skip
    pod = host.pod("a")

    def found():
        ids = {}
        for pid in (pod.init_pid, *enter.pids(pod)):
            status = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines())
            ids[tuple(map(int, fields["Uid"].split()))] = fields["Groups"].strip()
            assert userns.base(pid) == base
        return ids

    wait_until(lambda: found() == {(base,) * 4: "", (base + 33,) * 4: ""})
    assert {row["user"] for row in json.loads(host.launch("ps", "a", "--json").stdout)} == {0, 33}


def test_what_the_kernel_counts_is_not_counted_for_the_host_s_root(host, shifted):
    base = shifted("a")
    host.launch("start", "a", "/bin/sleep", "1000")
    with open(f"/proc/{host.pod('a').init_pid}/ns/user") as namespace:
        owner = fcntl.ioctl(namespace, NS_GET_OWNER_UID, bytes(4))
    assert int.from_bytes(owner, "little") == base


def test_two_pods_with_the_same_users_never_meet(host, shifted):
    bases = [shifted(name) for name in ("a", "b")]
    for name in ("a", "b"):
        script = "setpriv --reuid 33 --regid 33 --clear-groups sh -c 'echo $$ > /tmp/pid; id -u'"
        assert sh(host, name, script) == "33\n"
        owner = (host.places.state(name) / "upper/tmp/pid").stat()
        assert (owner.st_uid, owner.st_gid) == (33, 33)
        host.launch("start", name, "/bin/sleep", "1000")

    outer = [host_user(host.pod(name)) for name in ("a", "b")]
    assert outer == bases
    assert abs(bases[0] - bases[1]) >= users.COUNT
    assert user_namespace(host.pod("a").init_pid) != user_namespace(host.pod("b").init_pid)
    assert user_namespace(os.getpid()) not in map(
        user_namespace, (host.pod("a").init_pid, host.pod("b").init_pid)
    )


def host_user(pod):
    (pid,) = enter.pids(pod)
    return os.stat(f"/proc/{pid}").st_uid


def user_namespace(pid):
    return os.stat(f"/proc/{pid}/ns/user").st_ino


LEAK = """
import ctypes, os
assert ctypes.CDLL(None).mount(b"leak", b"/mnt", b"tmpfs", 0, b"mode=0700") == 0
os.umask(0o077)
print("secret", file=open("/mnt/key", "x"))
"""


def leak(pod):
    """Mount a file that only the host's root may read or change in the pod, as a leak would."""
    argv = ["nsenter", f"--mount=/proc/{pod.init_pid}/ns/mnt", "python3", "-c", LEAK]
    subprocess.run(argv, check=True)


def test_a_file_of_the_host_s_root_stays_closed_even_if_it_leaks(host, shifted, debian_root):
    shifted("a")
    host.mount("b", debian_root)
    script = "cat /mnt/key; chmod 777 /mnt/key; chown 0 /mnt/key; rm /mnt/key; ls /mnt"

    for name, expected in (("b", "secret\n"), ("a", "")):
        host.launch("start", name, "/bin/sleep", "1000")
        leak(host.pod(name))
        assert sh(host, name, script, "exec", expect=None) == expected


def test_devices_and_terminals_are_the_pod_s_root_s(host, shifted):
    shifted("a")
    names = "/dev /dev/null /dev/pts /dev/pts/ptmx /dev/shm /dev/ptmx /sys /dev/fd"

    out = sh(
        host, "a", f"stat -c '%u:%g' {names} | sort -u; chmod 600 /dev/full; echo x >/dev/null"
    )

    assert out == "0:0\n"
    script = "tty; stat -c '%u:%g %a' $(tty); echo hello > $(tty); mesg y && echo can"
    out = host.launch("run", "-t", "a", "/bin/sh", "-c", script).stdout
    assert out.replace("\r", "").splitlines() == ["/dev/pts/0", "0:5 620", "hello", "can"]


def test_streams_can_be_opened_again(host, shifted):
    shifted("a")
    assert sh(host, "a", "echo out > /dev/stdout; echo x > /dev/stderr") == "out\n"
    host.launch("start", "a", "/bin/sh", "-c", "echo logged > /dev/stdout; exec sleep 1000")
    wait_until(lambda: "logged" in host.launch("logs", "a").stdout)
    host.launch("stop", "a")
    assert not enter_pids(host, "a")


def enter_pids(host, name):
    return [row for row in json.loads(host.launch("list", "--json").stdout)
            if row["pod"] == name and row["state"] == "running"]  # fmt: skip


def test_capabilities_are_those_over_the_pod_s_own(host, shifted):
    """It may listen on port 80, use raw sockets where it is allowed to, and own System V IPC."""
    shifted("a", '[network]\nmode = "none"\n[privileges]\nadd_capabilities = ["net_raw"]\n')
    script = """
import os, socket, ctypes
socket.create_server(("127.0.0.1", 80)).close()
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
libc = ctypes.CDLL(None, use_errno=True)
queue = libc.msgget(7, 0o1600)
assert queue >= 0
assert libc.msgctl(queue, 0, None) == 0
os.mkfifo("/fifo")
os.chown("/fifo", 33, 33)
os.setgid(33)
os.setuid(33)
try:
    os.setuid(0)
except PermissionError:
    print("well")
"""
    assert host.launch("run", "a", "python3", "-c", script).stdout == "well\n"


@pytest.mark.parametrize("profile", ["strict", "service", "debian"])
def test_the_probe_finds_nothing_open(host, shifted, profile):
    shifted("a", f'[privileges]\nprofile = "{profile}"\n')
    host.launch("start", "a", "/bin/sleep", "1000")

    rows = json.loads(host.launch("probe", "a", "--json", expect=None).stdout)

    assert {row["attempt"]: row["reason"] for row in rows if row["state"] == "open"} == {}


def test_the_monitor_mounts_for_the_pod_s_root(host, shifted):
    shifted("a", '[privileges]\nprofile = "debian"\n')
    script = """
        set -e
        mkdir /a /b; mount -t tmpfs none /a; mount -t tmpfs -o uid=33,gid=34,mode=0700 none /b
        stat -c '%u:%g' /a /b
        touch /a/file /b/file; chown 33 /a/file; stat -c '%u:%g' /a/file /b/file
        mount -t proc none /mnt; ls -d /mnt/1; umount /a
        mount -t tmpfs -o uid=65536 none /a || echo refused
        setpriv --reuid 33 --regid 33 --clear-groups mount -t tmpfs none /a || echo held
    """
    out = sh(host, "a", script).splitlines()
    assert out == ["0:0", "33:34", "33:0", "0:0", "/mnt/1", "refused", "held"]


def test_set_user_id_programs_and_capabilities_of_files(host, shifted):
    shifted("a", '[privileges]\nprofile = "debian"\nadd_capabilities = ["net_raw"]\n')
    script = """
        cp /bin/id /as33; chown 33:33 /as33; chmod 6755 /as33
        cp /bin/cat /raw
        python3 -c 'import os; os.setxattr("/raw", "security.capability", bytes.fromhex("{cap}"))'
        setpriv --reuid 1000 --regid 1000 --clear-groups /as33 -u
        setpriv --reuid 1000 --regid 1000 --clear-groups /raw /proc/self/status | grep CapEff
    """
    net_raw = "01000002" + "00200000" + "00" * 12  # cap_net_raw+ep, of whoever is root here
    out = sh(host, "a", script.replace("{cap}", net_raw)).splitlines()
    assert out[0] == "33"
    assert int(out[1].split()[1], 16) == 1 << 13
    assert os.getxattr(host.places.state("a") / "upper/raw", "security.capability").hex() == net_raw


def test_users_outside_of_the_namespace_do_not_exist(host, shifted):
    shifted("a")
    script = "touch /x; chown 65535 /x && chown 65536 /x; stat -c %u /x"
    assert sh(host, "a", script, expect=0).splitlines() == ["65535"]


# --- which ids, and when ---------------------------------------------------------------------


def test_ids_are_kept_for_life_and_given_up_with_the_pod(host, shifted):
    first = shifted("a")
    second = shifted("b")
    sh(host, "a", "true")
    (host.places.run("a") / "stackfs.json").read_text()
    assert users.base(host.places, "a") == first
    network.remove_network(host.places, "b")
    assert users.base(host.places, "b") is None
    host.configure("c", NAMESPACE)
    assert users.ensure(host.places, config.load(host.places, "c")) == second
    assert users.ensure(host.places, config.load(host.places, "b")) == second + users.COUNT
    users.forget(host.places, "c")
    users.forget(host.places, "b")
    assert users.base(host.places, "a") == first


def test_a_root_of_other_users_is_refused(host, shifted, debian_root):
    base = shifted("a")
    host.mount("b", debian_root)
    host.configure("b", NAMESPACE)
    refused = host.launch("run", "b", "true", expect=125).stderr
    other = users.base(host.places, "b")
    assert other not in (None, base)
    assert refused.splitlines() == [
        f"launcher: error: the users of pod 'b' begin at {other} of the host,"
        " those of its root at 0",
        f"launcher: hint: stackfs umount b; stackfs mount b --shift {other}",
    ]
    host.configure("a", "")
    refused = host.launch("run", "a", "true", expect=125).stderr
    assert f"are the host's, those of its root at {base}" in refused
    assert users.base(host.places, "a") is None
    host.configure("a", NAMESPACE)


def test_the_namespace_can_be_had_later_and_given_up(host, debian_root, shifted):
    base = shifted("a")
    sh(host, "a", "true")
    subprocess.run([STACKFS, "umount", "a"], check=True)
    subprocess.run([STACKFS, "mount", "a", "--shift", "0"], check=True)
    host.configure("a", "")
    out = sh(host, "a", "cat /proc/self/uid_map; stat -c %u /etc").split()
    assert out == ["0", "0", "4294967295", "0"]
    subprocess.run([STACKFS, "umount", "a"], check=True)
    subprocess.run([STACKFS, "mount", "a", "--shift", str(base)], check=True)
    host.configure("a", NAMESPACE)
    out = sh(host, "a", "cat /proc/self/uid_map; stat -c %u /etc").split()
    assert out == ["0", str(base), "65536", "0"]


def test_the_plan_tells_of_it(host, shifted):
    base = shifted("a")
    steps = host.launch("start", "--dry-run", "a", "/bin/true").stdout
    assert f"be root in the user namespace of the network: user 0 is the host's {base}" in steps
    assert f"gid={base + 5}" in steps
    host.configure("b", NAMESPACE)
    steps = host.launch("start", "--dry-run", "b", "/bin/true").stdout
    assert f"user 0 is the host's {base + users.COUNT}" in steps
    assert users.base(host.places, "b") is None
