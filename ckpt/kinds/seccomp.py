"""System-call filters of a thread: seccomp(2).

The first is the pod's own. Where the pod's monitor emulates calls (launcher.monitor), it has a
listener, which belongs to the launcher and is in no process of the pod: at the restart each thread
gets a new one.
"""

import ctypes
import struct
from functools import cache
from itertools import takewhile
from typing import Final

import msgspec

from ckpt import abi
from ckpt.kinds.stages import Stage, SubjectThread, Target
from ckpt.model import Process
from ckpt.states import state_of

STAGE = Stage.CONFINE
_NAME: Final = "seccomp"

_PR_SET_SECCOMP: Final = 22
_SECCOMP_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1
_FLAG_LOG: Final = 2
_FLAG_NEW_LISTENER: Final = 8
_FLAG_TSYNC_ESRCH: Final = 16
_FLAG_WAIT_KILLABLE_RECV: Final = 32
_RETURN: Final = 0x06
_USER_NOTIF: Final = 0x7FC00000
_MODES: Final = {"0": "none", "1": "strict", "2": "filter"}
_INSTRUCTION: Final = ctypes.sizeof(abi.sock_filter)


class Filter(msgspec.Struct, frozen=True):
    """One program of the chain: classic BPF for the pod's architecture (<linux/filter.h>)."""

    program: bytes
    log: bool


class State(msgspec.Struct, frozen=True):
    """*mode* is "none", "strict" or "filter"; filters in the order of their installation."""

    mode: str
    filters: list[Filter]


def collect(thread: SubjectThread) -> State:
    """Read the programs out of the kernel: PTRACE_SECCOMP_GET_FILTER, newest first."""
    mode = _MODES[thread.status.get("Seccomp", "0")]
    count = int(thread.status.get("Seccomp_filters", "0")) if mode == "filter" else 0
    filters = [_read(thread.tracee.tid, index) for index in range(count)]
    return State(mode, filters[::-1])


def _read(tid: int, index: int) -> Filter:
    length = abi.ptrace(abi.PTRACE_SECCOMP_GET_FILTER, tid, index, None)
    program = (abi.sock_filter * length)()
    abi.ptrace(abi.PTRACE_SECCOMP_GET_FILTER, tid, index, ctypes.addressof(program))
    about = abi.seccomp_metadata(index, 0)
    abi.ptrace(abi.PTRACE_SECCOMP_GET_METADATA, tid, ctypes.sizeof(about), ctypes.addressof(about))
    return Filter(bytes(program), bool(about.flags & _FLAG_LOG))


def rebuild(state: State, target: Target) -> None:
    """Install the programs while CAP_SYS_ADMIN lasts.

    They do not hinder the calls that follow: the tracer has PTRACE_O_SUSPEND_SECCOMP. What all
    threads have is installed once, by the first for all: else the program could install no more in
    that way (kernel/seccomp.c, seccomp_can_sync_threads()).
    """
    remote = target.remote
    common, is_first = _common(target.process), target.tid == target.process.threads[0].tid
    for number, entry in enumerate(state.filters):
        if number < common and not is_first:
            continue
        at = remote.put(entry.program)
        program = struct.pack("<H6xQ", len(entry.program) // _INSTRUCTION, at)
        listens = number == 0 and _notifies(entry.program)
        flags = _FLAG_LOG if entry.log else 0
        if number < common:
            flags |= _FLAG_TSYNC | _FLAG_TSYNC_ESRCH
        if listens:
            flags |= _FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV
        result = remote.syscall("seccomp", _SECCOMP_SET_MODE_FILTER, flags, program)
        if listens:
            target.give_listener(result)
            remote.syscall("close", result)
    if state.mode == "strict":
        remote.syscall("prctl", _PR_SET_SECCOMP, 1, 0, 0, 0)


def _common(process: Process) -> int:
    """Return how many filters, from the first on, all threads have; 0 if there is one thread."""
    parts = [p for t in process.threads for p in t.parts if p.kind == _NAME]
    if len(parts) < 2:
        return 0
    if len({bytes(part.state) for part in parts}) == 1:
        return len(state_of(parts[0], State).filters)
    chains = [state_of(part, State).filters for part in parts]
    same = (len({(f.program, f.log) for f in row}) == 1 for row in zip(*chains, strict=False))
    return sum(takewhile(bool, same))


@cache
def _notifies(program: bytes) -> bool:
    """Does *program* leave calls to a listener?"""
    instructions = struct.iter_unpack("<HBBI", program)
    return any((code, k) == (_RETURN, _USER_NOTIF) for code, _, _, k in instructions)
