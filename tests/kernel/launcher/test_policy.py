"""The profiles of launcher/policy.py, held by the kernel."""

import json

import pytest

pytestmark = pytest.mark.needs("root", "namespaces")

# Each line of output: what was tried, and the errno it gave, or ok.
TRIES = r"""
import ctypes, errno, os, resource, stat
libc = ctypes.CDLL(None, use_errno=True)
def tell(name, call):
    try:
        call()
        print(f"{name}: ok")
    except OSError as e:
        print(f"{name}: {errno.errorcode[e.errno]}")
def libc_call(name, *args):
    if getattr(libc, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)
def node(name, kind, device):
    os.mknod(f"/root/{name}", kind | 0o666, device)
null = os.makedev(1, 3)
tell("null", lambda: node("null", stat.S_IFCHR, null))
tell("mem", lambda: node("mem", stat.S_IFCHR, os.makedev(1, 1)))
tell("console", lambda: node("console", stat.S_IFCHR, os.makedev(5, 1)))
tell("disk", lambda: node("disk", stat.S_IFBLK, os.makedev(8, 0)))
tell("block null", lambda: node("blocknull", stat.S_IFBLK, null))
tell("fifo", lambda: node("fifo", stat.S_IFIFO, 0))
tell("socket", lambda: node("socket", stat.S_IFSOCK, 0))
tell("nicer", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
tell("less nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, 5))
tell("of init", lambda: os.setpriority(os.PRIO_PROCESS, 1, 5))
tell("real-time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
tell("batch", lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
tell("affinity", lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)))
tell("lower limit", lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))
tell("higher limit", lambda: libc_call("setrlimit", 4, (ctypes.c_ulong * 2)(0, 4096)))
space = ctypes.create_string_buffer(9 << 20)
tell("lock a page", lambda: libc_call("mlock", space, ctypes.c_size_t(4096)))
tell("lock much", lambda: libc_call("mlock", space, ctypes.c_size_t(9 << 20)))
tell("host name", lambda: libc_call("sethostname", b"x", ctypes.c_size_t(1)))
tell("line discipline", lambda: libc_call("ioctl", 0, ctypes.c_ulong(0x5423), b"\0\0\0\0"))
print("limits:", [resource.getrlimit(r) for r in (resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO)])
"""
DROPPED = {
    "nicer": "EACCES", "less nice": "ok", "of init": "ok", "real-time": "EPERM", "batch": "ok",
    "affinity": "ok", "lower limit": "ok", "higher limit": "EPERM", "lock a page": "ok",
    "lock much": "ENOMEM", "host name": "EPERM", "line discipline": "EPERM",
    "limits": "[(0, 0), (0, 0)]",
}  # fmt: skip
NO_NODES = dict.fromkeys(("null", "mem", "console", "disk", "block null"), "EPERM")
NODES = {
    "strict": NO_NODES | {"fifo": "ok", "socket": "ok"},
    "service": NO_NODES | {"fifo": "ok", "socket": "ok"},
    "debian": NO_NODES | {"null": "ok", "fifo": "ok", "socket": "ok"},
}


@pytest.mark.parametrize("profile", NODES)
def test_privileges_are_dropped_and_arguments_looked_at(pod, profile):
    pod.configure("a", f'[privileges]\nprofile = "{profile}"')

    out = pod.launch("run", "a", "/usr/bin/python3", "-c", TRIES).stdout

    assert dict(line.split(": ") for line in out.splitlines()) == NODES[profile] | DROPPED


def test_it_can_be_read(host):
    host.configure("a", '[privileges]\nprofile = "debian"\nallow = ["keyctl"]\ndeny = ["ptrace"]')

    rows = json.loads(host.launch("policy", "a", "--json").stdout)
    text = host.launch("policy", "a").stdout

    kinds = {row["call"]: row["kind"] for row in rows}
    some = ("bpf", "fsopen", "ptrace", "mount", "clone", "setpriority", "chroot")
    assert {call: kinds[call] for call in some} == {
        "bpf": "disabled",
        "fsopen": "disabled",
        "ptrace": "disabled",
        "mount": "argument-filtered",
        "clone": "argument-filtered",
        "setpriority": "privilege-dropped",
        "chroot": "confined by namespace",
    }
    assert "keyctl" not in kinds
    assert text.startswith("profile debian: ")
    assert "\nbpf " in text
