import pytest

from launcher import policy, seccomp
from launcher.syscalls import LAST, NUMBERS
from tests import bpf

ALLOW, EPERM, ENOSYS, EAFNOSUPPORT = 0x7FFF0000, 0x50001, 0x50026, 0x50061
KILL = 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@pytest.fixture(params=ARCH)
def judge(request):
    program = seccomp.compile_policy(request.param)
    arch = ARCH[request.param]

    def judge(call, *args, arch=arch):
        nr = NUMBERS[request.param].get(call) if isinstance(call, str) else call
        return bpf.verdict(program, nr, arch, args)

    judge.numbers = NUMBERS[request.param]
    return judge


def test_every_number_gets_the_verdict_of_its_table(judge):
    wanted = dict.fromkeys(range(LAST + 1), ALLOW)
    for calls in policy.DISABLED.values():
        wanted |= {judge.numbers[call]: EPERM for call in calls if call in judge.numbers}
    wanted |= {judge.numbers[call]: ENOSYS for call in policy.ABSENT}
    for call in ("socket", "socketpair"):
        wanted[judge.numbers[call]] = EAFNOSUPPORT  # family 0

    assert {nr: judge(nr) for nr in wanted} == wanted


def test_what_the_policy_does_not_know_is_absent(judge):
    assert {judge(nr) for nr in (LAST + 1, 1000, 0x3FFFFFFF, 0x40000000, 0x40000101, -1)} == {
        ENOSYS
    }


def test_foreign_architecture_is_killed(judge):
    assert judge(0, arch=0x40000003) == KILL  # AUDIT_ARCH_I386


@pytest.mark.parametrize(
    ("call", "args", "expected"),
    [
        ("clone", (0x01200011,), ALLOW),  # fork() of the C library
        ("clone", (0x003D0F00,), ALLOW),  # pthread_create()
        ("clone", (0x00000080,), ALLOW),  # an exit signal, not CLONE_NEWTIME
        *[("clone", (1 << bit | 17,), EPERM) for bit in (17, 25, 26, 27, 28, 29, 30)],
        ("unshare", (0x200 | 0x400,), ALLOW),
        *[("unshare", (1 << bit,), EPERM) for bit in (7, 17, 25, 26, 27, 28, 29, 30)],
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0x100005412), EPERM),  # CVE-2019-10063
        ("ioctl", (0, 0x541C), EPERM),
        ("socket", (1, 1, 0), ALLOW),
        ("socket", (2, 1, 6), ALLOW),
        ("socket", (10, 2, 17), ALLOW),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (0x100000010, 3, 0x100000000), ALLOW),
        *[("socket", (16, 3, protocol), EAFNOSUPPORT) for protocol in (2, 6, 9, 12, 16)],
        *[
            ("socket", (family, 3, 0), EAFNOSUPPORT)
            for family in (0, 3, 15, 17, 29, 33, 38, 40, 44)
        ],
        ("socketpair", (1, 1, 0), ALLOW),
    ],
)
def test_arguments(judge, call, args, expected):
    assert judge(call, *args) == expected


def test_calls_that_services_need_are_allowed():
    needed = {"chroot": 161, "ptrace": 101, "mknod": 133, "seccomp": 317, "execveat": 322}
    named = {call for calls in policy.DISABLED.values() for call in calls} | {*policy.ABSENT}

    program = seccomp.compile_policy("x86_64")

    assert not named & needed.keys()
    assert {bpf.verdict(program, nr, ARCH["x86_64"]) for nr in needed.values()} == {ALLOW}


def test_every_named_call_has_a_number():
    named = {call for calls in policy.DISABLED.values() for call in calls}
    named |= {*policy.ABSENT, *policy.ARGUMENTS}

    assert named == NUMBERS["x86_64"].keys()


def test_unknown_machine():
    with pytest.raises(ValueError, match="'riscv64'"):
        seccomp.compile_policy("riscv64")
