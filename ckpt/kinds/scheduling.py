"""How a thread is scheduled, and its name: sched(7), ioprio_set(2), PR_SET_NAME."""

import ctypes
import os
from pathlib import Path
from typing import Final

import msgspec

from ckpt import abi
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
_PR_SET_TIMERSLACK, _PR_GET_TIMERSLACK = 29, 30
_IOPRIO_WHO_PROCESS: Final = 1
_MASK_BYTES: Final = 1024


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
    """Ask the kernel about the thread; only the timer slack must be asked by itself."""
    tid, attr = thread.tracee.tid, abi.sched_attr()
    size = ctypes.sizeof(attr)
    number = arch.SYSCALLS["sched_getattr"]
    abi.syscall("sched_getattr", number, tid, ctypes.byref(attr), size, 0)
    cpus = os.sched_getaffinity(tid)
    return State(
        name=Path(f"/proc/{tid}/comm").read_bytes().rstrip(b"\n"),
        policy=_POLICY_NAMES[attr.sched_policy],
        reset_on_fork=bool(attr.sched_flags & _RESET_ON_FORK),
        nice=attr.sched_nice,
        priority=attr.sched_priority,
        deadline_ns=(attr.sched_runtime, attr.sched_deadline, attr.sched_period)
        if attr.sched_policy == _POLICIES["deadline"]
        else (0, 0, 0),
        cpus=None if cpus >= set(range(os.cpu_count() or 1)) else sorted(cpus),
        io_priority=abi.syscall(
            "ioprio_get", arch.SYSCALLS["ioprio_get"], _IOPRIO_WHO_PROCESS, tid
        ),
        slack_ns=thread.remote.syscall("prctl", _PR_GET_TIMERSLACK, 0, 0, 0, 0),
    )


def rebuild(state: State, target: Target) -> None:
    """Set it all from within; what this host does not allow is noted."""
    remote = target.remote
    remote.syscall("prctl", _PR_SET_NAME, state.name + b"\0", 0, 0, 0)
    remote.syscall("prctl", _PR_SET_TIMERSLACK, state.slack_ns, 0, 0, 0)
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
    _try(target, "scheduling policy", "sched_setattr", 0, bytes(attr), 0)
    _try(target, "I/O priority", "ioprio_set", _IOPRIO_WHO_PROCESS, 0, state.io_priority)
    if state.cpus is not None:
        mask = sum(1 << cpu for cpu in state.cpus).to_bytes(_MASK_BYTES, "little")
        _try(target, "CPU affinity", "sched_setaffinity", 0, len(mask), mask)


def _try(target: Target, what: str, name: str, *args: int | bytes) -> None:
    try:
        target.remote.syscall(name, *args)
    except (PermissionError, OSError) as e:
        target.note(f"the {what} is not as it was: {e.strerror}")
