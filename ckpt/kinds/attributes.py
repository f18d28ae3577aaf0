"""Small attributes of a process: prctl(2), personality(2), membarrier(2), oom_score_adj, a stop."""

import contextlib
import errno
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from ckpt import procfs
from ckpt.kinds import thread_signals
from ckpt.kinds.flags import bit_names, bits, signal_number
from ckpt.kinds.stages import Stage, Subject, Target, name_of
from ckpt.states import state_of

STAGE = Stage.ARM

# <linux/prctl.h>
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42
_PR_SET_MDWE, _PR_GET_MDWE = 65, 66
_MDWE: Final = {"refuse-exec-gain": 1, "no-inherit": 2}
_SUID_DUMP_USER: Final = 1

# <linux/membarrier.h>: that it is wanted, and that it is done, which only they may who want it
_GET_REGISTRATIONS: Final = 1 << 9
_BARRIERS: Final = {
    "global": 1 << 2,
    "private": 1 << 4,
    "private-sync-core": 1 << 6,
    "private-rseq": 1 << 8,
}

_StopSignal = Literal["SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"]
_STOPS: Final[Mapping[int, _StopSignal]] = {
    signal.SIGSTOP: "SIGSTOP",
    signal.SIGTSTP: "SIGTSTP",
    signal.SIGTTIN: "SIGTTIN",
    signal.SIGTTOU: "SIGTTOU",
}


class State(msgspec.Struct, frozen=True):
    """Attributes of a process.

    Attributes:
        personality: execution domain and flags as of personality(2).
        dumpable: PR_SET_DUMPABLE.
        subreaper: PR_SET_CHILD_SUBREAPER.
        no_huge_pages: PR_SET_THP_DISABLE.
        write_or_execute: flags of PR_SET_MDWE by name, none before Linux v6.3.
        oom_score_adjust: -1000 to 1000.
        coredump_filter: core(5).
        stopped: a stopping signal holds all its threads.
        stopped_by: which one; None where an archive does not say: SIGSTOP.
        barriers: which expedited commands of membarrier(2) it has registered for.
    """

    personality: int
    dumpable: bool
    subreaper: bool
    no_huge_pages: bool
    write_or_execute: list[str]
    oom_score_adjust: int
    coredump_filter: int
    stopped: bool
    stopped_by: _StopSignal | None = None
    barriers: list[str] = []


def collect(subject: Subject) -> State:
    """Ask the process, and read /proc/PID."""
    call, pid = subject.remote.syscall, subject.host_pid
    stops = [thread.stopped_by for thread in subject.process.threads if thread.stopped_by]
    reaper = bytearray(4)
    call("prctl", _PR_GET_CHILD_SUBREAPER, reaper, 0, 0, 0)
    return State(
        personality=int(procfs.read(pid, "personality"), 16),
        dumpable=call("prctl", _PR_GET_DUMPABLE, 0, 0, 0, 0) == _SUID_DUMP_USER,
        subreaper=any(reaper),
        no_huge_pages=bool(call("prctl", _PR_GET_THP_DISABLE, 0, 0, 0, 0)),
        write_or_execute=_write_or_execute(subject),
        oom_score_adjust=int(procfs.read(pid, "oom_score_adj")),
        coredump_filter=int(procfs.read(pid, "coredump_filter") or "33", 16),
        stopped=bool(stops),
        stopped_by=_STOPS[stops[0]] if stops else None,
        barriers=_barriers(subject),
    )


def _write_or_execute(subject: Subject) -> list[str]:
    try:
        return bit_names(subject.remote.syscall("prctl", _PR_GET_MDWE, 0, 0, 0, 0), _MDWE)
    except OSError:
        return []  # this kernel does not know it


def _barriers(subject: Subject) -> list[str]:
    """Ask what it has registered for; a kernel before v6.3 tells by what it lets it do."""
    call = subject.remote.syscall
    try:
        known = call("membarrier", _GET_REGISTRATIONS, 0, 0) & sum(_BARRIERS.values())
        return bit_names(known, _BARRIERS)
    except OSError:
        return [name for name, bit in _BARRIERS.items() if name != "global" and _may(bit, subject)]


def _may(registration: int, subject: Subject) -> bool:
    try:
        subject.remote.syscall("membarrier", registration >> 1, 0, 0)
    except OSError:
        return False
    return True


def rebuild(state: State, target: Target) -> None:
    """Set them; a stopped process stops again as soon as it is let go."""
    call, pid = target.remote.syscall, target.host_pid
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/coredump_filter").write_text(f"{state.coredump_filter:#x}")
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(state.oom_score_adjust))
    except PermissionError:
        target.note(f"oom_score_adj is not {state.oom_score_adjust}: this host may not lower it")
    call("personality", state.personality)
    call("prctl", _PR_SET_CHILD_SUBREAPER, int(state.subreaper), 0, 0, 0)
    call("prctl", _PR_SET_THP_DISABLE, int(state.no_huge_pages), 0, 0, 0)
    call("prctl", _PR_SET_DUMPABLE, int(state.dumpable), 0, 0, 0)
    if state.write_or_execute:
        _promise(state.write_or_execute, target)
    for name in state.barriers:
        _register(name, target)
    if state.stopped:
        os.kill(pid, _stopping(state, target))


def _stopping(state: State, target: Target) -> int:
    """Return the signal that stops it: who blocks another one than SIGSTOP would not stop."""
    number = signal_number(state.stopped_by) if state.stopped_by else signal.SIGSTOP
    for thread in target.process.threads:
        for part in thread.parts:
            if part.kind == name_of(thread_signals):
                blocked = thread_signals.mask(state_of(part, thread_signals.State))
                if not blocked >> number - 1 & 1:
                    return number
    return signal.SIGSTOP


def _register(name: str, target: Target) -> None:
    try:
        target.remote.syscall("membarrier", bits([name], _BARRIERS), 0, 0)
    except OSError:
        target.note(f"it cannot use membarrier(2) of kind {name}: this kernel lacks it")


def _promise(flags: list[str], target: Target) -> None:
    try:
        target.remote.syscall("prctl", _PR_SET_MDWE, bits(flags, _MDWE), 0, 0, 0)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        target.note("memory may be made executable (PR_SET_MDWE is lost): this kernel lacks it")
