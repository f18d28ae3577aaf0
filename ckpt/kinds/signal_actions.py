"""What a process does on each signal: sigaction(2).

Late, when only one thread makes calls any more: SIGTRAP does not stay ignored while a thread steps.
"""

import signal
import struct
from typing import Final

import msgspec

from ckpt.kinds.flags import bit_names, bits, signal_mask, signal_name, signal_number, signal_set
from ckpt.kinds.stages import Stage, Subject, Target

STAGE = Stage.ARM

# <asm/signal.h>: struct kernel_sigaction has handler, flags, restorer, mask.
_ACTION: Final = struct.Struct("<QQQQ")
_FLAGS: Final = {
    "nocldstop": 0x1,
    "nocldwait": 0x2,
    "siginfo": 0x4,
    "expose-tagbits": 0x800,
    "restorer": 0x0400_0000,
    "onstack": 0x0800_0000,
    "restart": 0x1000_0000,
    "nodefer": 0x4000_0000,
    "resethand": 0x8000_0000,
}
_DISPOSITIONS: Final = {0: "default", 1: "ignore"}
_SIGCHLD: Final = 17


class Action(msgspec.Struct, frozen=True):
    """One action; *handler* is "default", "ignore" or an address."""

    signal: str
    handler: str | int
    flags: list[str]
    restorer: int
    mask: list[str]


class State(msgspec.Struct, frozen=True):
    """Actions that are not plainly the default."""

    actions: list[Action]


def collect(subject: Subject) -> State:
    """Ask for the signals that /proc/PID/status calls caught or ignored.

    SIGCHLD is asked for always: its flags matter with the default action, too (SA_NOCLDWAIT).
    """
    status = subject.process.status
    special = int(status["SigCgt"], 16) | int(status["SigIgn"], 16) | 1 << _SIGCHLD - 1
    actions = []
    for number in range(1, 65):
        if not special >> number - 1 & 1:
            continue
        raw = bytearray(_ACTION.size)
        subject.remote.syscall("rt_sigaction", number, 0, raw, 8)
        if any(raw):
            actions.append(_decode(number, raw))
    return State(actions)


def _decode(number: int, raw: bytearray) -> Action:
    handler, flags, restorer, mask = _ACTION.unpack(raw)
    return Action(
        signal_name(number),
        _DISPOSITIONS.get(handler, handler),
        bit_names(flags, _FLAGS),
        restorer,
        signal_set(mask),
    )


def rebuild(state: State, target: Target) -> None:
    """Set the actions; all others are the default already."""
    dispositions = {name: value for value, name in _DISPOSITIONS.items()}
    for action in state.actions:
        handler, number = action.handler, signal_number(action.signal)
        if number == signal.SIGTRAP:
            target.tracee.spare_traps()
        address = dispositions[handler] if isinstance(handler, str) else handler
        raw = _ACTION.pack(
            address, bits(action.flags, _FLAGS), action.restorer, signal_mask(action.mask)
        )
        target.remote.later("rt_sigaction", number, raw, 0, 8)
