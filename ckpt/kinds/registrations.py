"""Addresses that a thread has registered with the kernel: set_tid_address(2), robust futexes, rseq.

The kernel writes there when the thread exits or is preempted.
"""

import ctypes
import struct
from typing import Final

import msgspec

from ckpt import abi
from ckpt.arch import x86_64 as arch
from ckpt.kinds.stages import Stage, SubjectThread, Target

STAGE = Stage.SETTLE

_PR_GET_TID_ADDRESS: Final = 40


class RestartableSequences(msgspec.Struct, frozen=True):
    """Address, size and signature given to rseq(2)."""

    address: int
    size: int
    signature: int


class State(msgspec.Struct, frozen=True):
    """An address of 0 means none."""

    clear_child_tid: int
    robust_list: int
    robust_list_size: int
    rseq: RestartableSequences | None


def collect(thread: SubjectThread) -> State:
    """Ask the kernel about the thread, and the thread for the address that it only tells itself."""
    raw = bytearray(8)
    thread.remote.syscall("prctl", _PR_GET_TID_ADDRESS, raw, 0, 0, 0)
    head, size = ctypes.c_uint64(), ctypes.c_size_t()
    abi.syscall(
        "get_robust_list",
        arch.SYSCALLS["get_robust_list"],
        thread.tracee.tid,
        ctypes.byref(head),
        ctypes.byref(size),
    )
    address, length, signature = thread.tracee.rseq()
    return State(
        struct.unpack("<Q", raw)[0],
        head.value,
        size.value,
        RestartableSequences(address, length, signature) if address else None,
    )


def rebuild(state: State, target: Target) -> None:
    """Register them again."""
    remote = target.remote
    remote.later("set_tid_address", state.clear_child_tid)
    if state.robust_list:
        remote.later("set_robust_list", state.robust_list, state.robust_list_size)
    if state.rseq:
        remote.later("rseq", state.rseq.address, state.rseq.size, 0, state.rseq.signature)
