"""How a thread is scheduled, and its name: sched(7), ioprio_set(2), PR_SET_NAME.

All but the name is told and set from outside: a call made in a thread costs one stop or two, and a
pod may have many threads.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from ckpt import abi, procfs
from ckpt.arch import x86_64 as arch
from ckpt.kinds.stages import Stage, SubjectThread, Target

STAGE = Stage.SETTLE

_POLICIES: Final = {  # <linux/sched.h>
    "other": 0,
    "fifo": 1,
    "rr": 2,
    "batch": 3,
    "idle": 5,
    "deadline": 6,
    "ext": 7,
}
_POLICY_NAMES: Final = {number: name for name, number in _POLICIES.items()}
_RESET_ON_FORK: Final = 1
_PR_SET_NAME: Final = 15
_PR_GET_TIMERSLACK: Final = 30
_IOPRIO_WHO_PROCESS: Final = 1


class State(msgspec.Struct, frozen=True):
    """Scheduling of a thread.

    Attributes:
        name: comm, without its final zero byte.
        policy: "other", "fifo", "rr", "batch", "idle", "deadline" or "ext".
        reset_on_fork: SCHED_FLAG_RESET_ON_FORK.
        nice: -20 to 19.
        priority: of the real-time policies.
        deadline_ns: runtime, deadline, period of the policy "deadline".
        cpus: those it may run on; None if it may run on all of the host.
        io_priority: class and level as of ioprio_set(2).
        slack_ns: timer slack.
    """

    name: bytes
    policy: str
    reset_on_fork: bool
    nice: int
    priority: int
    deadline_ns: tuple[int, int, int]
    cpus: list[int] | None
    io_priority: int
    slack_ns: int


def collect(thread: SubjectThread) -> State:
    """Ask the kernel about the thread."""
    tid, attr = thread.tracee.tid, abi.sched_attr()
    size = ctypes.sizeof(attr)
    _call("sched_getattr", tid, ctypes.byref(attr), size, 0)
    cpus = os.sched_getaffinity(tid)
    return State(
        name=procfs.read_bytes(tid, "comm").rstrip(b"\n"),
        policy=_POLICY_NAMES[attr.sched_policy],
        reset_on_fork=bool(attr.sched_flags & _RESET_ON_FORK),
        nice=attr.sched_nice,
        priority=attr.sched_priority,
        deadline_ns=(attr.sched_runtime, attr.sched_deadline, attr.sched_period)
        if attr.sched_policy == _POLICIES["deadline"]
        else (0, 0, 0),
        cpus=None if cpus >= set(range(os.cpu_count() or 1)) else sorted(cpus),
        io_priority=_call("ioprio_get", _IOPRIO_WHO_PROCESS, tid),
        slack_ns=_slack(thread),
    )


def _call(name: str, *args: Any) -> int:  # noqa: ANN401 (what ctypes takes)
    return abi.syscall(name, arch.SYSCALLS[name], *args)


def _slack(thread: SubjectThread) -> int:
    try:
        return int(procfs.read(thread.tracee.tid, "timerslack_ns"))
    except PermissionError:  # without CAP_SYS_NICE only the thread itself may ask
        return thread.remote.syscall("prctl", _PR_GET_TIMERSLACK, 0, 0, 0, 0)


def rebuild(state: State, target: Target) -> None:
    """Set it all; what this host does not allow is noted."""
    tid = target.remote.tracee.tid
    target.remote.later("prctl", _PR_SET_NAME, state.name + b"\0", 0, 0, 0)
    with _noting(target, "timer slack"):
        procfs.write(tid, "timerslack_ns", str(state.slack_ns))
    runtime, deadline, period = state.deadline_ns
    attr = abi.sched_attr(
        ctypes.sizeof(abi.sched_attr),
        _POLICIES[state.policy],
        _RESET_ON_FORK if state.reset_on_fork else 0,
        state.nice,
        state.priority,
        runtime,
        deadline,
        period,
    )
    with _noting(target, "scheduling policy"):
        _call("sched_setattr", tid, ctypes.byref(attr), 0)
    with _noting(target, "I/O priority"):
        _call("ioprio_set", _IOPRIO_WHO_PROCESS, tid, state.io_priority)
    if state.cpus is not None:
        with _noting(target, "CPU affinity"):
            os.sched_setaffinity(tid, state.cpus)


@contextmanager
def _noting(target: Target, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        target.note(f"the {what} is not as it was: {e.strerror}")
