"""A thread's blocked signals and its alternate signal stack: sigprocmask(2), sigaltstack(2)."""

import struct
from typing import Final

import msgspec

from ckpt.kinds.flags import bit_names, bits, signal_mask, signal_set
from ckpt.kinds.stages import Stage, SubjectThread, Target

STAGE = Stage.SETTLE

_STACK: Final = struct.Struct("<QIIQ")  # stack_t: address, flags, padding, size
_SS_DISABLE: Final = 2
_FLAGS: Final = {"autodisarm": 1 << 31}


class AlternateStack(msgspec.Struct, frozen=True):
    """Where handlers with SA_ONSTACK run."""

    address: int
    size: int
    flags: list[str]


class State(msgspec.Struct, frozen=True):
    """*blocked* is what is blocked outside of calls such as sigsuspend(2) that change it."""

    blocked: list[str]
    stack: AlternateStack | None


def collect(thread: SubjectThread) -> State:
    """Ask the thread; the mask was taken when it was stopped."""
    raw = bytearray(_STACK.size)
    thread.remote.syscall("sigaltstack", 0, raw)
    address, flags, _, size = _STACK.unpack(raw)
    stack = None
    if not flags & _SS_DISABLE:
        stack = AlternateStack(address, size, bit_names(flags & ~1, _FLAGS))
    return State(signal_set(thread.own.blocked), stack)


def rebuild(state: State, target: Target) -> None:
    """Set the alternate stack. The mask comes with the registers: until then all is blocked."""
    if state.stack:
        stack = state.stack
        raw = _STACK.pack(stack.address, bits(stack.flags, _FLAGS), 0, stack.size)
        target.remote.later("sigaltstack", raw, 0)


def mask(state: State) -> int:
    """Return the blocked signals as a kernel mask."""
    return signal_mask(state.blocked)
