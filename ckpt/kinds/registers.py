"""The registers of a thread, such that it goes on where it was.

A system call that the freeze interrupted is made again, or fails with EINTR: ckpt/interrupted.py
decides. That is already worked into the registers that are kept.
"""

import msgspec

from ckpt import interrupted
from ckpt.arch import x86_64 as arch
from ckpt.kinds.stages import Stage, SubjectThread, Target
from ckpt.tracee import Tracee

STAGE = Stage.ARM


class State(msgspec.Struct, frozen=True):
    """Registers by their names in the architecture; *extended* in XSAVE's standard format."""

    general: dict[str, int]
    extended: bytes


def collect(thread: SubjectThread) -> State:
    """Take the program's own registers, not those of the injected calls."""
    registers = arch.copy(thread.registers)
    _settle(registers, quiet=is_quiet(registers, thread.status))
    general = {name: getattr(registers, name) for name in arch.REGISTER_NAMES if name != "orig_rax"}
    return State(general, thread.tracee.xstate())


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


def _settle(registers: arch.Registers, *, quiet: bool) -> None:
    call = arch.pending_call(registers)
    if call is None:
        return
    if quiet or arch.will_restart(registers):
        arch.restart(registers)
    elif arch.needs_restart_block(registers):
        if interrupted.may_repeat(*call):
            arch.restart(registers)
        else:
            arch.fail_interrupted(registers)


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
