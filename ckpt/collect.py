"""One frozen process -> model, without its open files and its pages."""

import time
from collections.abc import Callable
from types import ModuleType
from typing import Final

import msgspec

from ckpt import procfs
from ckpt.freeze import FrozenProcess
from ckpt.inject import Injection, Own
from ckpt.kinds import (
    attributes,
    credentials,
    limits,
    memory,
    paths,
    pending,
    registers,
    registrations,
    scheduling,
    seccomp,
    semundo,
    signal_actions,
    stages,
    thread_signals,
    timers,
)
from ckpt.kinds.stages import Subject, SubjectThread
from ckpt.kinds.sysvsem import Semaphores
from ckpt.model import Part, Refusal, Thread
from ckpt.remote import Remote
from ckpt.tracee import TIMEOUT_S, Tracee

PROCESS_KINDS: Final = (paths, signal_actions, semundo, limits, timers, pending, attributes)
"""Process-level kinds in the order of collection and, within a stage, of rebuilding.

Timers come before pending signals: one that expires in between is then there twice, not lost.
"""

THREAD_KINDS: Final = (
    scheduling,
    registrations,
    thread_signals,
    seccomp,
    credentials,
    pending,
    registers,
)
"""Kinds of state of each thread; filters come before credentials, which they may need."""


_ATTEMPTS: Final = 100


class Collected(msgspec.Struct, frozen=True):
    """State of one process.

    Attributes:
        memory: its address space, without pages.
        parts: its other parts.
        threads: leader first.
        copy: a stopped copy of it from which to read the pages; None if there could be none.
        quiet: threads whose interrupted call is to be made again when they go on.
    """

    memory: memory.State
    parts: list[Part]
    threads: list[Thread]
    copy: Tracee | None
    quiet: list[Tracee]


def part(kind: ModuleType, state: msgspec.Struct) -> Part:
    """Return *state* as a part of the model."""
    return Part(stages.name_of(kind), msgspec.Raw(msgspec.msgpack.encode(state)))


def collect(
    process: FrozenProcess,
    file_id: Callable[[str], int],
    refusals: list[Refusal],
    semaphores: Semaphores,
    *,
    goes_on: bool,
) -> Collected:
    """Collect a process that has threads.

    Args:
        process: it stands still.
        file_id: see Subject.
        refusals: what cannot be carried over is added here.
        semaphores: the pod's.
        goes_on: before its pages are read, so that a copy of it is wanted.
    """
    mappings = procfs.parse_smaps(procfs.read_bytes(process.view, "smaps"))
    vdso = [mapping for mapping in mappings if mapping.name == b"[vdso]"]
    for tracee in process.threads:
        _leave(tracee, vdso)
    status = {
        tracee.tid: procfs.parse_status(procfs.read(process.host_pid, f"task/{tracee.tid}/status"))
        for tracee in process.threads
    }
    tids = {tid: procfs.inner_pid(fields) for tid, fields in status.items()}
    own = {tracee.tid: Own.of(tracee) for tracee in process.threads}
    quiet = [t for t in process.threads if registers.is_quiet(own[t.tid].registers, status[t.tid])]

    def refuse(what: str, why: str, hint: str) -> None:
        refusals.append(process.refusal(what, why, hint))

    with Injection(process, mappings) as injection:

        def thread(tracee: Tracee, remote: Remote) -> Thread:
            tid = tracee.tid
            subject_thread = SubjectThread(subject, tracee, remote, own[tid], status[tid])
            parts = [part(kind, kind.collect(subject_thread)) for kind in THREAD_KINDS]
            return Thread(tids[tid], parts)

        leader = process.leader
        with injection.borrow(leader, own[leader.tid]) as remote:
            subject = Subject(
                process, mappings, injection, remote, file_id, tids, refuse, semaphores
            )
            parts = [part(kind, kind.collect(subject)) for kind in PROCESS_KINDS]
            space = memory.collect(subject)
            threads = [thread(leader, remote)]
        for tracee in process.threads[1:]:
            with injection.borrow(tracee, own[tracee.tid]) as remote:
                threads.append(thread(tracee, remote))
        copy = injection.copy() if goes_on else None
    return Collected(space, parts, threads, copy, quiet)


def _leave(tracee: Tracee, vdso: list[procfs.Mapping]) -> None:
    """Let a thread that is in the middle of the vDSO come out: another kernel has other code there.

    It reads the clock there, which takes less than a microsecond.
    """
    for mapping in vdso:
        for _ in range(_ATTEMPTS):
            if not mapping.start <= tracee.registers().rip < mapping.end:
                return
            tracee.resume()
            tracee.interrupt()
            tracee.wait_stop(time.monotonic() + TIMEOUT_S)
