"""The policy as a classic BPF program for seccomp(2). Pure: tables in, bytes out.

The program is a binary search over the number of the call; its leaves are verdicts or checks of
arguments. So every call costs a handful of instructions, and the kernel remembers for each
number that always gets the same verdict (kernel/seccomp.c, seccomp_cache_prepare(), v5.11).
"""

import struct
from itertools import groupby
from typing import Final, NamedTuple

from launcher import policy
from launcher.policy import (
    EAFNOSUPPORT,
    ENOSYS,
    EPERM,
    Check,
    Emulated,
    NoBits,
    NotThese,
    OnlyDevices,
    OnlyFamilies,
    Rules,
)
from launcher.syscalls import LAST, NUMBERS


class Instruction(NamedTuple):
    """`struct sock_filter`: jumps are counted from the next instruction."""

    code: int
    jt: int
    jf: int
    k: int


# <linux/bpf_common.h>, <linux/seccomp.h>, <linux/audit.h>
_LD_ABS: Final = 0x20
_JA: Final = 0x05
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_AND: Final = 0x54
_RET: Final = 0x06
KILL: Final = 0x80000000
ERRNO: Final = 0x00050000
NOTIFY: Final = 0x7FC00000
ALLOW: Final = 0x7FFF0000
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# struct seccomp_data: int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]
_NR: Final = 0
_ARCH: Final = 4
_ARGS: Final = 16

# <linux/stat.h>
_S_IFMT: Final = 0o170000
_S_IFCHR: Final = 0o020000
_S_IFBLK: Final = 0o060000

Code = list[Instruction]
Verdict = int | Check
"""A SECCOMP_RET_* value, or a check that leads to one."""


def compile_rules(rules: Rules, machine: str) -> bytes:
    """Return the filter of *rules* for *machine* (uname(2)), packed for the kernel.

    Raises:
        ValueError: there is no table of system calls for *machine*.
    """
    if machine not in NUMBERS:
        raise ValueError(f"no table of system calls for {machine!r}")
    code = [
        Instruction(_LD_ABS, 0, 0, _ARCH),
        Instruction(_JEQ, 1, 0, AUDIT_ARCH[machine]),
        _ret(KILL),
        Instruction(_LD_ABS, 0, 0, _NR),
        *_search(_intervals(_verdicts(rules, NUMBERS[machine]))),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _verdicts(rules: Rules, numbers: dict[str, int]) -> dict[int, Verdict]:
    """Return the verdict for each number that *rules* name, and which this machine has."""
    verdicts: dict[str, Verdict] = dict(rules.arguments)
    verdicts |= {name: ERRNO | EPERM for names in rules.disabled.values() for name in names}
    verdicts |= dict.fromkeys(rules.absent, ERRNO | ENOSYS)
    return {numbers[name]: verdict for name, verdict in verdicts.items() if name in numbers}


def _intervals(verdicts: dict[int, Verdict]) -> list[tuple[int, Verdict]]:
    """Return where each run of equal verdicts begins, ascending, from 0 to the highest number."""
    line: list[tuple[int, Verdict]] = [(n, verdicts.get(n, ALLOW)) for n in range(LAST + 1)]
    line.append((LAST + 1, ERRNO | ENOSYS))  # newer calls; x32, whose numbers have bit 30
    return [next(run) for _, run in groupby(line, key=lambda entry: entry[1])]


def _search(intervals: list[tuple[int, Verdict]]) -> Code:
    """Return code that goes to the verdict of the interval which the accumulator lies in."""
    if len(intervals) == 1:
        return _leaf(intervals[0][1])
    middle = len(intervals) // 2
    below, above = _search(intervals[:middle]), _search(intervals[middle:])
    start = intervals[middle][0]
    if len(below) < 256:
        return [Instruction(_JGE, len(below), 0, start), *below, *above]
    return [  # a conditional jump reaches 255 instructions at most
        Instruction(_JGE, 0, 1, start),
        Instruction(_JA, 0, 0, len(below)),
        *below,
        *above,
    ]


def _leaf(verdict: Verdict) -> Code:
    match verdict:
        case int():
            return [_ret(verdict)]
        case NoBits(arg, mask):
            return [_load(arg), Instruction(_JSET, 0, 1, mask), _ret(ERRNO | EPERM), _ret(ALLOW)]
        case Emulated(arg, mask):
            other = ~mask & 0xFFFFFFFF
            return [_load(arg), Instruction(_JSET, 0, 1, other), _ret(ERRNO | EPERM), _ret(NOTIFY)]
        case NotThese(arg, values):
            return [_load(arg), *_one_of(values, skip=1), _ret(ALLOW), _ret(ERRNO | EPERM)]
        case OnlyDevices(mode, devices):
            return [
                _load(mode),
                Instruction(_AND, 0, 0, _S_IFMT),
                Instruction(_JEQ, len(devices) + 2, 0, _S_IFBLK),
                Instruction(_JEQ, 0, len(devices) + 2, _S_IFCHR),
                _load(mode + 1),
                *_one_of(tuple(map(_encoded, devices)), skip=1),
                _ret(ERRNO | EPERM),
                _ret(ALLOW),
            ]
        case OnlyFamilies(families, netlink):
            return [
                _load(0),
                *_one_of(families, skip=4),
                Instruction(_JEQ, 0, 2, policy.AF_NETLINK),
                _load(2),
                Instruction(_JEQ, 1, 0, netlink),
                _ret(ERRNO | EAFNOSUPPORT),
                _ret(ALLOW),
            ]


def _one_of(values: tuple[int, ...], skip: int) -> Code:
    """Return code that skips *skip* instructions more if the accumulator is in *values*."""
    last = len(values) - 1
    return [Instruction(_JEQ, last - i + skip, 0, value) for i, value in enumerate(values)]


def _encoded(device: tuple[int, int]) -> int:
    """Return a device number as mknod(2) takes it: new_encode_dev(), <linux/kdev_t.h>."""
    major, minor = device
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _load(arg: int) -> Instruction:
    """Load the low half of argument *arg*; both machines are little-endian."""
    return Instruction(_LD_ABS, 0, 0, _ARGS + 8 * arg)


def _ret(value: int) -> Instruction:
    return Instruction(_RET, 0, 0, value)
