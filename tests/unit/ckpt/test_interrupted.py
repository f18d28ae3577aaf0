import pytest

from ckpt.interrupted import is_quiet, may_repeat, rest


@pytest.mark.parametrize(
    ("call", "arguments", "repeat"),
    [
        ("nanosleep", (0x1000, 0x1000, 0, 0, 0, 0), True),  # what is left stands in the argument
        ("nanosleep", (0x1000, 0x2000, 0, 0, 0, 0), False),
        ("nanosleep", (0x1000, 0, 0, 0, 0, 0), False),
        ("clock_nanosleep", (1, 1, 0x1000, 0, 0, 0), True),  # TIMER_ABSTIME
        ("clock_nanosleep", (1, 0, 0x1000, 0x1000, 0, 0), True),
        ("clock_nanosleep", (1, 0, 0x1000, 0x2000, 0, 0), False),
        ("futex", (0x1000, 128, 0, 0x2000, 0, 0), False),  # FUTEX_WAIT: relative
        ("futex", (0x1000, 9 | 128 | 256, 0, 0x2000, 0, 0), True),  # FUTEX_WAIT_BITSET: absolute
        ("poll", (0x1000, 1, 2000, 0, 0, 0), False),
    ],
)
def test_may_repeat(call, arguments, repeat):
    assert may_repeat(call, arguments) is repeat


@pytest.mark.parametrize(
    ("call", "arguments", "quiet"),
    [
        ("epoll_wait", (3, 0x1000, 10, 0xFFFFFFFF, 0, 0), True),
        ("epoll_wait", (3, 0x1000, 10, 0xFFFFFFFFFFFFFFFF, 0, 0), True),
        ("epoll_wait", (3, 0x1000, 10, 500, 0, 0), False),
        ("epoll_pwait2", (3, 0x1000, 10, 0, 0, 0), True),
        ("epoll_pwait2", (3, 0x1000, 10, 0x2000, 0, 0), False),
        ("rt_sigtimedwait", (0x1000, 0x2000, 0, 8, 0, 0), True),
        ("semtimedop", (3, 0x1000, 1, 0, 0, 0), True),
        ("semtimedop", (3, 0x1000, 1, 0x2000, 0, 0), False),
        ("semop", (3, 0x1000, 1, 0x2000, 0, 0), True),
        ("connect", (3, 0x1000, 16, 0, 0, 0), False),
    ],
)
def test_is_quiet(call, arguments, quiet):
    assert is_quiet(call, arguments) is quiet


@pytest.mark.parametrize(
    ("call", "arguments", "where"),
    [
        ("nanosleep", (0x1000, 0x1000, 0, 0, 0, 0), (0x1000, 1)),
        ("clock_nanosleep", (1, 0, 0x1000, 0x1000, 0, 0), (0x1000, 1)),
        ("clock_nanosleep", (1, 1, 0x1000, 0, 0, 0), None),  # TIMER_ABSTIME
        ("clock_nanosleep", (2, 0, 0x1000, 0x1000, 0, 0), None),  # CLOCK_PROCESS_CPUTIME_ID
        ("clock_nanosleep", (-6 & (1 << 64) - 1, 0, 0x1000, 0x1000, 0, 0), None),
        ("ppoll", (0x1000, 1, 0x2000, 0, 8, 0), (0x2000, 1)),
        ("ppoll", (0x1000, 1, 0, 0, 8, 0), None),  # without a timeout
        ("pselect6", (0, 0, 0, 0, 0x2000, 0), (0x2000, 1)),
        ("select", (0, 0, 0, 0, 0x2000, 0), (0x2000, 1000)),
        ("read", (0, 0x1000, 10, 0, 0, 0), None),
    ],
)
def test_where_what_is_left_stands(call, arguments, where):
    assert rest(call, arguments) == where
