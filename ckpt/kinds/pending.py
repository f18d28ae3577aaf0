"""Signals that were sent and not yet delivered, with what came along (siginfo_t).

The same kind serves a process (signals to any of its threads) and a thread.
"""

import signal
import struct
from typing import Final

import msgspec

from ckpt import abi
from ckpt.kinds.flags import signal_name, signal_number
from ckpt.kinds.stages import Stage, Subject, SubjectThread, Target

STAGE = Stage.ARM

_HEAD: Final = struct.Struct("<iiiI")  # siginfo_t: signal, errno, code, then (aligned) a union


class Signal(msgspec.Struct, frozen=True):
    """A queued signal; *code* is si_code, *detail* the union behind it (sigaction(2)).

    What stands in between, and is no field, comes along, too: rt_sigqueueinfo(2) lets programs
    write all of it.
    """

    signal: str
    error: int
    code: int
    detail: bytes
    between: int = 0


class State(msgspec.Struct, frozen=True):
    """In the order of arrival; *shared* ones were sent to the whole process."""

    shared: bool
    queue: list[Signal]


def collect(subject: Subject | SubjectThread) -> State:
    """Peek at the queue."""
    shared = isinstance(subject, Subject)
    tracee = subject.process.leader if isinstance(subject, Subject) else subject.tracee
    return State(shared, [_decode(raw) for raw in tracee.pending(shared=shared)])


def _decode(raw: bytes) -> Signal:
    number, error, code, between = _HEAD.unpack_from(raw)
    return Signal(signal_name(number), error, code, raw[_HEAD.size :].rstrip(b"\0"), between)


def _encode(queued: Signal) -> bytes:
    head = _HEAD.pack(signal_number(queued.signal), queued.error, queued.code, queued.between)
    return (head + queued.detail).ljust(abi.SIGINFO_BYTES, b"\0")


def rebuild(state: State, target: Target) -> None:
    """Have the process send the signals to itself: others may not forge si_code.

    All signals are blocked there, so that they stay pending. To the kernel "itself" is the thread.

    Source: kernel/signal.c, do_rt_sigqueueinfo().
    """
    for queued in state.queue:
        number, raw = signal_number(queued.signal), _encode(queued)
        if number == signal.SIGTRAP:
            target.tracee.spare_traps()
        if state.shared:
            target.remote.syscall("rt_sigqueueinfo", target.tid, number, raw)
        else:
            pid = target.process.pid
            target.remote.syscall("rt_tgsigqueueinfo", pid, target.tid, number, raw)
