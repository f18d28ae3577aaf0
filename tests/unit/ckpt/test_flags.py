import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.kinds import flags, termios

STATUS = st.sets(st.sampled_from(sorted(flags.STATUS)))


@given(STATUS, st.sampled_from(sorted(flags.ACCESS)))
def test_open_flags_survive_their_names(status, access):
    number = flags.bits(status, flags.STATUS) | flags.ACCESS[access]
    assert flags.open_flags(flags.open_flag_names(number)) == number


def test_what_says_nothing_has_no_name():
    number = os.O_RDWR | os.O_CLOEXEC | 0o100000
    assert flags.open_flag_names(number) == ["rdwr"]


def test_unknown_bits_are_told():
    with pytest.raises(ValueError, match="unknown flags 0x20"):
        flags.open_flag_names(0x20)
    with pytest.raises(ValueError, match="unknown flag 'sideways'"):
        flags.open_flags(["sideways"])


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_signal_sets_survive_their_names(mask):
    assert flags.signal_mask(flags.signal_set(mask)) == mask


@pytest.mark.parametrize("name", ["SIGNOTHING", "SIGRT", "SIGRTx", ""])
def test_unknown_signal(name):
    with pytest.raises(ValueError, match="unknown signal"):
        flags.signal_number(name)


@pytest.mark.parametrize("table", [termios._INPUT, termios._OUTPUT, termios._LOCAL])
def test_terminal_flags_are_the_libcs(table):
    import termios as libc

    for name, value in table.items():
        assert getattr(libc, name.upper(), value) == value
