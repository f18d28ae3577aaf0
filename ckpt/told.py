"""What the kernel tells of a thread to nobody but that thread, asked in one go.

The calls stand in a table that injected code goes through (ckpt/arch), so that a thread is stopped
once for all of them: a pod may have hundreds of threads, and stands still meanwhile.
"""

import os
import struct
from typing import Final

from msgspec import Struct

from ckpt.arch import x86_64 as arch

# <linux/prctl.h>
_PR_GET_PDEATHSIG, _PR_GET_SECUREBITS, _PR_GET_TIMERSLACK, _PR_GET_TID_ADDRESS = 2, 27, 30, 40

_WAIT_S: Final = 2
"""How long a thread waits, its answers given, to be stopped: then it is the program again."""

CALLS: Final = 5
"""How many calls are made."""

ROOM: Final = 256
"""Bytes that a table takes at most."""

_CALL: Final = struct.Struct("<Qqq")  # number, later the result; two arguments
_END: Final = struct.Struct("<qqQ")  # how long to wait: struct timespec; is it done?
_ANSWERS: Final = struct.Struct("<QI4xQI4xQ")  # tid address, death signal, stack_t
_STACK_OFFSET: Final = 16


class Told(Struct, frozen=True):
    """What a thread was told.

    Attributes:
        clear_child_tid: as set_tid_address(2) set it.
        death_signal: PR_GET_PDEATHSIG; 0: none.
        securebits: PR_GET_SECUREBITS.
        slack_ns: PR_GET_TIMERSLACK.
        stack: address, flags and size of the alternate signal stack: sigaltstack(2).
    """

    clear_child_tid: int
    death_signal: int
    securebits: int
    slack_ns: int
    stack: tuple[int, int, int]


def questions(at: int) -> bytes:
    """Return the table that is to stand at address *at*."""
    answers = at + CALLS * _CALL.size + _END.size
    calls = (
        ("prctl", _PR_GET_TID_ADDRESS, answers),
        ("prctl", _PR_GET_PDEATHSIG, answers + 8),
        ("sigaltstack", 0, answers + _STACK_OFFSET),
        ("prctl", _PR_GET_SECUREBITS, 0),
        ("prctl", _PR_GET_TIMERSLACK, 0),
    )
    table = b"".join(_CALL.pack(arch.SYSCALLS[name], *args) for name, *args in calls)
    return table + _END.pack(_WAIT_S, 0, 0) + bytes(_ANSWERS.size)


def answered(table: bytes) -> Told | None:
    """Return what is in the table, None before all calls were made.

    Raises:
        OSError: one failed.
    """
    calls = CALLS * _CALL.size
    if not _END.unpack_from(table, calls)[2]:
        return None
    results = [arch.signed(_CALL.unpack_from(table, at)[0]) for at in range(0, calls, _CALL.size)]
    for result in results:
        if -4096 < result < 0:
            raise OSError(-result, os.strerror(-result))
    address, death, *stack = _ANSWERS.unpack_from(table, calls + _END.size)
    return Told(address, death, results[3], results[4], (stack[0], stack[1], stack[2]))
