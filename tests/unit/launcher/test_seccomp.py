import pytest

from launcher import capabilities, policy, seccomp
from launcher.syscalls import LAST, NUMBERS
from tests import bpf

ALLOW, NOTIFY, EPERM, ENOSYS, EAFNOSUPPORT = 0x7FFF0000, 0x7FC00000, 0x50001, 0x50026, 0x50061
KILL = 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@pytest.fixture(params=ARCH)
def judge(request):
    program = seccomp.compile_rules(policy.rules(), request.param)
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
        ("ioctl", (0, 0x5423), EPERM),
        ("mknodat", (0, 0, 0o100644, 0), ALLOW),
        ("mknodat", (0, 0, 0o644, 0x100), ALLOW),  # a regular file: the number does not matter
        ("mknodat", (0, 0, 0o010644, 0), ALLOW),
        ("mknodat", (0, 0, 0o020666, 0x103), ALLOW),  # null
        ("mknodat", (0, 0, 0o020666, 0x500), ALLOW),  # tty
        (
            "mknodat",
            (0, 0, 0x5678_0000 | 0o020666, 0x1234_0000_0103),
            ALLOW,
        ),  # the rest is not looked at
        ("mknodat", (0, 0, 0o020666, 0x101), EPERM),  # mem
        ("mknodat", (0, 0, 0o020666, 0x501), EPERM),  # console
        ("mknodat", (0, 0, 0o020666, 0), EPERM),  # a whiteout of overlayfs
        ("mknodat", (0, 0, 0o020666, 0x100103), EPERM),  # 1:259
        ("mknodat", (0, 0, 0o060666, 0x103), EPERM),
        ("mknodat", (0, 0, 0o060666, 0x800), EPERM),
        ("mknodat", (0, 0, 0o020666, 0x109), ALLOW),
        ("mknodat", (0, 0, 0o020666, 0x10AE8), EPERM),  # kvm
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

    program = seccomp.compile_rules(policy.rules(), "x86_64")

    assert not named & needed.keys()
    assert {bpf.verdict(program, nr, ARCH["x86_64"]) for nr in needed.values()} == {ALLOW}


def test_every_named_call_has_a_number():
    named = {call for calls in policy.DISABLED.values() for call in calls}
    named |= {*policy.ABSENT, *policy.ARGUMENTS}
    for calls in (*policy.DROPPED.values(), *policy.BY_NAMESPACE.values()):
        named |= {*calls}

    assert named <= NUMBERS["x86_64"].keys()


def test_mknod_has_its_mode_one_argument_earlier():
    program = seccomp.compile_rules(policy.rules(), "x86_64")

    def judge(*args):
        return bpf.verdict(program, 133, ARCH["x86_64"], args)

    assert judge(0, 0o020666, 0x103) == judge(0, 0o010666, 0x800) == ALLOW
    assert judge(0, 0o020666, 0x101) == judge(0, 0o060666, 0x103) == EPERM


@pytest.fixture
def debian():
    program = seccomp.compile_rules(policy.rules("debian"), "x86_64")
    return lambda call, *args: bpf.verdict(program, NUMBERS["x86_64"][call], ARCH["x86_64"], args)


@pytest.mark.parametrize(
    ("call", "args", "expected"),
    [
        ("mount", (0, 0, 0, 0), NOTIFY),
        ("mount", (0, 0, 0, 0x20040F), NOTIFY),
        ("mount", (0, 0, 0, 0xABCD_0000_0002), NOTIFY),  # the kernel takes more: the monitor sees
        *[("mount", (0, 0, 0, 1 << bit), EPERM) for bit in (4, 5, 6, 12, 13, 14, 17, 18, 19, 20)],
        ("umount2", (0, 0), NOTIFY),
        ("umount2", (0, 10), NOTIFY),
        ("umount2", (0, 4), EPERM),
        ("fsopen", (), ENOSYS),
        ("move_mount", (), ENOSYS),
        ("open_tree", (), ENOSYS),
        ("pivot_root", (), EPERM),
        ("setns", (), EPERM),
        ("bpf", (), EPERM),
        ("unshare", (0x20000,), EPERM),
    ],
)
def test_debian_may_ask_its_monitor_to_mount(debian, call, args, expected):
    assert debian(call, *args) == expected


@pytest.mark.parametrize("profile", ["strict", "service"])
def test_only_debian_needs_a_monitor(profile):
    assert policy.rules(profile).emulated == ()
    assert policy.rules("debian").emulated == ("mount", "umount2")


def test_a_pod_has_its_own_additions():
    rules = policy.rules("debian", allow=("keyctl", "clone3", "mount"), deny=("ptrace", "socket"))
    program = seccomp.compile_rules(rules, "x86_64")

    verdicts = {
        call: bpf.verdict(program, NUMBERS["x86_64"][call], ARCH["x86_64"])
        for call in ("keyctl", "add_key", "clone3", "mount", "umount2", "ptrace", "socket")
    }

    assert verdicts == {
        "keyctl": ALLOW, "add_key": EPERM, "clone3": ALLOW, "mount": ALLOW, "umount2": NOTIFY,
        "ptrace": EPERM, "socket": EPERM,
    }  # fmt: skip


def test_no_profile_has_what_is_dropped():
    held = {name for profile in policy.PROFILES.values() for name in profile.capabilities}

    assert not held & policy.DROPPED.keys()
    assert not held & capabilities.UNSAFE


def test_limits_are_anybodys_without_the_capability():
    assert policy.lowered_limits(()) == {"NICE": 0, "RTPRIO": 0, "MEMLOCK": 8 << 20}
    assert policy.lowered_limits(("sys_nice",)) == {"MEMLOCK": 8 << 20}


def test_unknown_machine():
    with pytest.raises(ValueError, match="'riscv64'"):
        seccomp.compile_rules(policy.rules(), "riscv64")
