"""The table of what a thread asks the kernel about itself."""

import struct

import pytest

from ckpt import told
from ckpt.arch import x86_64 as arch

AT = 0x1000
CALL = struct.Struct("<QQQ")
ANSWERS = told.CALLS * CALL.size + 24


def calls():
    return list(CALL.iter_unpack(told.questions(AT)[: told.CALLS * CALL.size]))


def table(results, done=1):
    """The table as injected code leaves it."""
    raw = bytearray(told.questions(AT))
    for number, result in enumerate(results):
        struct.pack_into("<q", raw, number * CALL.size, result)
    struct.pack_into("<Q", raw, ANSWERS - 8, done)
    struct.pack_into("<QI4xQI4xQ", raw, ANSWERS, 0x7F00, 15, 0x5000, 2, 8192)
    return bytes(raw)


def test_it_asks_within_its_room():
    raw = told.questions(AT)
    assert len(raw) <= told.ROOM
    assert {number for number, *_ in calls()} == {
        arch.SYSCALLS[n] for n in ("prctl", "sigaltstack")
    }
    pointers = [word for _, *args in calls() for word in args if word >= AT]
    assert all(AT + ANSWERS <= pointer < AT + len(raw) for pointer in pointers)


def test_no_answer_before_all_calls_are_made():
    assert told.answered(table([0] * told.CALLS, done=0)) is None


def test_answers():
    assert told.answered(table([0, 0, 0, 16, 50_000])) == told.Told(
        0x7F00, 15, 16, 50_000, (0x5000, 2, 8192)
    )


def test_a_call_that_failed():
    with pytest.raises(OSError, match="Invalid argument"):
        told.answered(table([0, -22, 0, 0, 0]))
