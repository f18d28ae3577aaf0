"""Our filter against libseccomp's for the same policy, and against the kernel."""

import json
import subprocess
from pathlib import Path

import pytest

from launcher import policy, seccomp
from launcher.policy import NoBits, NotThese, OnlyDevices, OnlyFamilies
from launcher.syscalls import KNOWN, LAST, NUMBERS
from tests import bpf

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Debian's binding exists for Debian's interpreter only; it reads the rules from standard input.
ORACLE = r"""
import json, os, sys, seccomp as s
rules, names, machine, out = json.load(sys.stdin)
arch = {"x86_64": s.Arch.X86_64, "aarch64": s.Arch.AARCH64}[machine]
filter = s.SyscallFilter(s.ALLOW)
if machine != os.uname().machine:
    filter.add_arch(arch)
    filter.remove_arch(s.Arch.NATIVE)
OPS = {"==": s.EQ, "!=": s.NE, "&": s.MASKED_EQ}
numbers = {}
for name in names:
    numbers[name] = s.resolve_syscall(arch, name)
for name, errno, tests in rules:
    if numbers[name] < 0:
        continue
    args = [s.Arg(i, OPS[op], a, b) if op == "&" else s.Arg(i, OPS[op], a) for i, op, a, b in tests]
    filter.add_rule(s.ERRNO(errno), name, *args)
filter.export_bpf(open(out, "wb"))
print(json.dumps(numbers))
"""
LOW = 0xFFFFFFFF
DEVICE_NUMBERS = [0, *range(0x100, 0x110), 0x401, *range(0x500, 0x503), 0x800, 0x10AE8]


def rules():
    """The policy as libseccomp takes it: (call, errno, tests), and all tests of a rule hold."""
    for calls in policy.DISABLED.values():
        yield from ((call, 1, []) for call in calls)
    yield from ((call, 38, []) for call in policy.ABSENT)
    for call, check in policy.ARGUMENTS.items():
        match check:
            case NoBits(arg, mask):
                bits = [1 << bit for bit in range(32) if mask >> bit & 1]
                yield from ((call, 1, [(arg, "&", bit, bit)]) for bit in bits)
            case OnlyDevices(mode, devices):
                allowed = {major << 8 | minor for major, minor in devices}
                yield call, 1, [(mode, "&", 0o170000, 0o060000)]
                for other in set(DEVICE_NUMBERS) - allowed:
                    char = (mode, "&", 0o170000, 0o020000)
                    yield call, 1, [char, (mode + 1, "&", LOW, other)]
            case NotThese(arg, values):
                yield from ((call, 1, [(arg, "&", LOW, value)]) for value in values)
            case OnlyFamilies(families, netlink):
                allowed = [*families, policy.AF_NETLINK]
                for other in set(range(64)) - set(allowed):
                    yield call, 97, [(0, "==", other, 0)]
                yield call, 97, [(0, "==", policy.AF_NETLINK, 0), (2, "!=", netlink, 0)]


@pytest.fixture(params=ARCH)
def oracle(request, tmp_path):
    machine, out = request.param, tmp_path / "filter"
    run = subprocess.run(
        ["/usr/bin/python3", "-c", ORACLE],
        input=json.dumps([list(rules()), sorted(KNOWN), machine, str(out)]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return machine, out.read_bytes(), json.loads(run.stdout)


def test_numbers_are_libseccomps(oracle):
    machine, _, numbers = oracle

    known = {name: nr for name, nr in numbers.items() if nr >= 0}
    ours = NUMBERS[machine]

    # libseccomp 2.5.4 knows the calls of Linux 5.17
    assert {name for name in ours.keys() - known.keys() if ours[name] <= 449} == set()
    assert {name: ours.get(name) for name in known} == known


def test_verdicts_are_libseccomps(oracle):
    machine, theirs, numbers = oracle
    ours, arch = seccomp.compile_rules(policy.rules(), machine), ARCH[machine]
    values = [0, 1, 2, 10, 16, 17, 38, 40, *(1 << bit for bit in range(32)), 0x5412, 0x541C, 0x5401]
    tried = [(nr, ()) for nr in range(LAST + 1) if nr != NUMBERS[machine]["open_tree_attr"]]
    tried += [
        (numbers[call], tuple(value if i == arg else 0 for i in range(3)))
        for call in policy.ARGUMENTS
        for value in values
        for arg in range(3)
        if call in numbers and numbers[call] >= 0 and not call.startswith("mknod")
        if call not in ("socket", "socketpair") or arg or value < 64
    ]
    tried += [
        (numbers[call], (0,) * (policy.ARGUMENTS[call].mode - 1) + (0, mode | 0o644, number))
        for call in ("mknod", "mknodat")
        if numbers[call] >= 0
        for mode in (0, 0o010000, 0o020000, 0o060000, 0o100000)
        for number in DEVICE_NUMBERS
    ]
    tried += [(numbers["socket"], (16, 3, protocol)) for protocol in range(23)]

    differing = [
        t
        for t in tried
        if bpf.verdict(ours, t[0], arch, t[1]) != bpf.verdict(theirs, t[0], arch, t[1])
    ]

    assert len(tried) > 700
    assert differing == []


PROBE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static void tell(const char *name, long result) {
    printf("%s %d\n", name, result == -1 ? errno : 0);
}
int main(void) {
    tell("mount", mount("none", "/tmp", "tmpfs", 0, 0));
    tell("unshare user", unshare(CLONE_NEWUSER));
    tell("unshare files", unshare(CLONE_FILES));
    tell("clone user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    tell("clone3", syscall(SYS_clone3, 0, 0));
    tell("io_uring", syscall(425, 1, 0));
    tell("bpf", syscall(SYS_bpf, 0, 0, 0));
    tell("keyctl", syscall(SYS_keyctl, 0, -3, 0));
    tell("open_by_handle_at", syscall(SYS_open_by_handle_at, -100, 0, 0));
    tell("TIOCSTI", syscall(SYS_ioctl, 0, 0x100005412UL, "x"));
    tell("AF_VSOCK", socket(40, SOCK_STREAM, 0));
    tell("AF_ALG", socket(38, SOCK_SEQPACKET, 0));
    tell("AF_INET", socket(AF_INET, SOCK_STREAM, 0));
    tell("future", syscall(900));
#ifdef __x86_64__
    tell("x32", syscall(0x40000000 | 39));
    fflush(stdout);
    int status;
    if (fork() == 0) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
        _exit(0);
    }
    wait(&status);
    printf("i386 %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
#endif
    return 0;
}
"""


@pytest.mark.needs("root", "namespaces", "cc")
@pytest.mark.parametrize("capabilities", ["[]", '["sys_admin", "sys_chroot"]'])
def test_the_kernel_holds_it(host, small_tree, capabilities):
    """Also where the pod was given CAP_SYS_ADMIN: the filter was installed before, not by it."""
    host.mount("a", Path(small_tree(PROBE)))
    host.configure("a", f"[privileges]\ncapabilities = {capabilities}\nno_new_privileges = false")

    out = host.launch("run", "a", "/probe").stdout

    assert dict(line.rsplit(" ", 1) for line in out.splitlines()) == {
        "mount": "1",
        "unshare user": "1",
        "unshare files": "0",
        "clone user": "1",
        "clone3": "38",
        "io_uring": "1",
        "bpf": "1",
        "keyctl": "1",
        "open_by_handle_at": "1",
        "TIOCSTI": "1",
        "AF_VSOCK": "97",
        "AF_ALG": "97",
        "AF_INET": "0",
        "future": "38",
        "x32": "38",
        "i386": "31",
    }
