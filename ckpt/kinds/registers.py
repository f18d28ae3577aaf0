"""The registers of a thread, such that it goes on where it was.

A system call that the freeze interrupted is made again, or fails with EINTR: ckpt/interrupted.py
decides. That is already worked into the registers that are kept. What such a call waits for at most
is shortened by the time that the restart took of the pod's clock.
"""

import contextlib
import struct
from typing import Final

import msgspec

from ckpt import interrupted
from ckpt.arch import x86_64 as arch
from ckpt.kinds import clocks
from ckpt.kinds.stages import Stage, SubjectThread, Target
from ckpt.tracee import Tracee

STAGE = Stage.ARM


_TIME: Final = struct.Struct("<qq")  # struct timespec, struct timeval


class Timeout(msgspec.Struct, frozen=True):
    """What is left of the time of a call that is made again.

    Attributes:
        address: of two words: seconds, and a number of units.
        unit_ns: nanoseconds in a unit.
        read_ns: when that was left, by the pod's monotonic clock.
    """

    address: int
    unit_ns: int
    read_ns: int


class State(msgspec.Struct, frozen=True):
    """The registers.

    Attributes:
        general: by their names in the architecture.
        extended: in XSAVE's standard format.
        timeout: of the call that is made again, if it has one in memory.
    """

    general: dict[str, int]
    extended: bytes
    timeout: Timeout | None = None


def collect(thread: SubjectThread) -> State:
    """Take the program's own registers, not those of the injected calls."""
    registers = arch.copy(thread.own.registers)
    call = arch.pending_call(registers)
    timeout = None
    if _settle(registers, quiet=is_quiet(registers, thread.status)) and call:
        timeout = _timeout(thread.tracee, interrupted.rest(*call))
    general = {name: getattr(registers, name) for name in arch.REGISTER_NAMES if name != "orig_rax"}
    return State(general, thread.own.extended, timeout)


def _timeout(tracee: Tracee, rest: tuple[int, int] | None) -> Timeout | None:
    """Return what is left of a timeout, as the kernel has told it a moment before the stop."""
    if rest is None:
        return None
    return Timeout(*rest, read_ns=tracee.stopped_ns + clocks.ahead_ns(tracee.tid))


def is_quiet(registers: arch.Registers, status: dict[str, str]) -> bool:
    """Did a call fail with EINTR only because of the freeze? Then no signal waits for the thread.

    Args:
        registers: of the thread when it was stopped.
        status: fields of its /proc/PID/task/TID/status.
    """
    call = arch.pending_call(registers)
    if call is None or not arch.returns_eintr(registers):
        return False
    waiting = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return not waiting & ~int(status["SigBlk"], 16) and interrupted.is_quiet(*call)


def _settle(registers: arch.Registers, *, quiet: bool) -> bool:
    """Make *registers* those to go on with; return whether a call is made again."""
    call = arch.pending_call(registers)
    if call is None:
        return False
    if quiet or arch.will_restart(registers):
        arch.restart(registers)
        return True
    if arch.needs_restart_block(registers):
        if interrupted.may_repeat(*call):
            arch.restart(registers)
            return True
        arch.fail_interrupted(registers)
    return False


def repeat_quietly(tracee: Tracee) -> None:
    """Make a running program not notice the freeze, where is_quiet()."""
    registers = tracee.registers()
    arch.restart(registers)
    tracee.set_registers(registers)


def rebuild(state: State, target: Target) -> None:
    """Set the registers; the thread runs with them when it is let go."""
    registers = target.tracee.registers()
    for name, value in state.general.items():
        setattr(registers, name, value)
    registers.orig_rax = (1 << 64) - 1
    target.tracee.set_xstate(arch.fit_xstate(state.extended, target.tracee.xstate()))
    target.tracee.set_registers(registers)


def shorten(timeout: Timeout, target: Target) -> None:
    """Take from what was left the time that has gone by: the last step before it is let go.

    Another thread may have unmapped it meanwhile: the call will say so.
    """
    with contextlib.suppress(OSError):
        seconds, units = _TIME.unpack(target.memory.read(timeout.address, _TIME.size))
        left_ns = seconds * 10**9 + units * timeout.unit_ns
        left_ns = max(left_ns + timeout.read_ns - clocks.now_of(target.host_pid), 0)
        seconds, rest_ns = divmod(left_ns, 10**9)
        target.memory.write(timeout.address, _TIME.pack(seconds, rest_ns // timeout.unit_ns))
