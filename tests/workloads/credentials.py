"""Users, groups, capabilities, securebits, no_new_privs, limits and scheduling of processes."""
# toml: [network]
# toml: mode = "none"
# toml: [privileges]
# toml: no_new_privileges = false
# toml: capabilities = ["chown", "kill", "setuid", "setgid", "setpcap", "net_bind_service",
# toml:   "sys_nice"]

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2
PR_SET_DUMPABLE, PR_GET_DUMPABLE = 4, 3
PR_SET_KEEPCAPS, PR_GET_SECUREBITS = 8, 27
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30
PR_SET_MDWE, PR_GET_MDWE = 65, 66
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2


def prctl(*args):
    result = libc.prctl(
        *[ctypes.c_ulong(arg) for arg in args], *[ctypes.c_ulong(0)] * (5 - len(args))
    )
    if result == -1:
        raise OSError(ctypes.get_errno(), f"prctl {args}")
    return result


def capset(effective, permitted, inheritable):
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(effective, permitted, inheritable, 0, 0, 0)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def plain():
    pass


def user():
    os.setgroups([5, 7, 100])
    os.setresgid(1000, 1001, 1002)
    os.setresuid(2000, 2001, 2000)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def keeping():
    """A user with one capability, ambient too."""
    prctl(PR_SET_KEEPCAPS, 1)
    os.setresuid(33, 33, 33)
    net_bind = 1 << 10
    capset(net_bind, net_bind | 1 << 5, net_bind)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 10)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def inheriting():
    """What is inheritable, and not in the bounding set any more."""
    kill = 1 << 5
    capset(kill | 1 << 8, kill | 1 << 8, kill)
    prctl(PR_CAPBSET_DROP, 5)


def limited():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 35))
    os.umask(0o027)
    os.chdir("/usr/share")
    os.nice(5)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_TIMERSLACK, 123456)
    Path("/proc/self/comm").write_text("a (name) x")
    Path("/proc/self/oom_score_adj").write_text("300")
    libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE


def hardened():
    with contextlib.suppress(OSError):  # before Linux 6.3
        prctl(PR_SET_MDWE, 1)


def batch():
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(PermissionError):  # in a user namespace
        os.setpriority(os.PRIO_PROCESS, 0, -3)


def facts():
    """All that is to stay."""
    status = Path("/proc/self/status").read_text().splitlines()
    names = (
        "Name",
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "Cap",
        "NoNewPrivs",
        "Seccomp",
        "Cpus_allowed_list",
    )
    found = [line for line in status if line.startswith(names)]
    raw = ctypes.c_int()
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(raw), 0, 0, 0)
    found.append(f"death signal {raw.value}")
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(raw), 0, 0, 0)
    found.append(f"subreaper {raw.value}")
    found += [
        f"prctl {n}: {prctl(n)}" for n in (PR_GET_DUMPABLE, PR_GET_SECUREBITS, PR_GET_TIMERSLACK)
    ]
    limits = (getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
    found += [f"limit {n}: {resource.getrlimit(n)}" for n in sorted(limits)]
    found.append(f"scheduler {os.sched_getscheduler(0)} nice {os.getpriority(os.PRIO_PROCESS, 0)}")
    found.append(f"directory {os.getcwd()} personality {libc.personality(0xFFFFFFFF):#x}")
    found.append(f"personality {libc.personality(0xFFFFFFFF)}")
    found.append("oom " + Path("/proc/self/oom_score_adj").read_text().strip())
    return found


def no_executable_gain():
    """What this kernel says; -1 if it has no such promise, and then a restart has told of it."""
    return libc.prctl(PR_GET_MDWE, 0, 0, 0, 0)


def child(work, write_fd):
    work()
    before, gain = facts(), no_executable_gain()
    os.write(write_fd, b".")
    signal.sigwait({signal.SIGUSR1})
    after, gains = facts(), no_executable_gain()
    changes = [f"{b} -> {a}" for b, a in zip(before, after, strict=True) if a != b]
    if gains not in (max(gain, 0), -1):
        changes.append(f"no executable gain {gain} -> {gains}")
    if changes:
        os.write(write_fd, f"{work.__name__}: {', '.join(changes)}\n".encode())
        os._exit(1)
    os._exit(0)


works = [plain, user, keeping, inheriting, limited, batch, hardened]
read_fd, write_fd = os.pipe()
pids = []
for work in works:
    pid = os.fork()
    if pid == 0:
        try:
            child(work, write_fd)
        finally:
            os._exit(2)
    pids.append(pid)
    if os.read(read_fd, 1) != b".":
        sys.exit("a child failed")
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
for pid in pids:
    os.kill(pid, signal.SIGUSR1)
failed = [pid for pid in pids if os.waitpid(pid, 0)[1]]
print(
    "fail: " + os.read(read_fd, 9999).decode().replace("\n", "; ") if failed else "ok", flush=True
)
