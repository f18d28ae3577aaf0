"""Names of numbers that open files carry: status flags, signals. Pure.

The kernel numbers some of them differently from one architecture to the next; the archive holds
the names (proc_pid_fdinfo(5), open(2), signal(7)).
"""

import functools
import os
import signal
from collections.abc import Iterable, Mapping
from typing import Final

O_ASYNC: Final = 0o20000  # FASYNC: <asm-generic/fcntl.h>, the same wherever Linux runs but alpha
O_TMPFILE_BIT: Final = os.O_TMPFILE & ~os.O_DIRECTORY

STATUS: Final[Mapping[str, int]] = {
    "append": os.O_APPEND,
    "async": O_ASYNC,
    "direct": os.O_DIRECT,
    "directory": os.O_DIRECTORY,
    "exclusive": os.O_EXCL,  # a pidfd of a thread: PIDFD_THREAD
    "noatime": os.O_NOATIME,
    "nofollow": os.O_NOFOLLOW,
    "nonblock": os.O_NONBLOCK,
    "path": os.O_PATH,
    "sync": os.O_SYNC,  # before dsync, whose bit it includes
    "dsync": os.O_DSYNC,
    "tmpfile": O_TMPFILE_BIT,
}
ACCESS: Final[Mapping[str, int]] = {
    "rdonly": os.O_RDONLY,
    "wronly": os.O_WRONLY,
    "rdwr": os.O_RDWR,
    "ioctl-only": os.O_ACCMODE,
}
# Every open of a 64-bit process has it, and mostly says nothing: fs/open.c, build_open_flags().
LARGEFILE: Final = 0o100000 if os.uname().machine == "x86_64" else 0o400000

_ACCESS_NAME: Final = {value: name for name, value in ACCESS.items()}
_RT_FIRST: Final = 32  # the kernel's SIGRTMIN; a libc may keep the first ones for itself


def bit_names(bits: int, table: Mapping[str, int]) -> list[str]:
    """Return the names in *table* that make up *bits*, in the table's order.

    Raises:
        ValueError: some bits have no name.
    """
    names = []
    for name, value in table.items():
        if bits & value == value:
            names.append(name)
            bits &= ~value
    if bits:
        raise ValueError(f"unknown flags {bits:#x}")
    return names


def bits(names: Iterable[str], table: Mapping[str, int]) -> int:
    """Return the number that *names* make.

    Raises:
        ValueError: *table* lacks one.
    """
    result = 0
    for name in names:
        if name not in table:
            raise ValueError(f"unknown flag {name!r}")
        result |= table[name]
    return result


def open_flag_names(flags: int) -> list[str]:
    """Return the names of what fcntl(F_GETFL) gave, the access mode first.

    Raises:
        ValueError: some bits have no name.
    """
    rest = flags & ~(os.O_ACCMODE | os.O_CLOEXEC | LARGEFILE)
    return [_ACCESS_NAME[flags & os.O_ACCMODE], *bit_names(rest, STATUS)]


def open_flags(names: Iterable[str]) -> int:
    """Return the flags of open(2) that *names* mean."""
    return bits(names, {**STATUS, **ACCESS})


def signal_name(number: int) -> str:
    """Return the name of signal *number*: "SIGHUP", or "SIGRT0" for the kernel's SIGRTMIN."""
    if number >= _RT_FIRST:
        return f"SIGRT{number - _RT_FIRST}"
    return signal.Signals(number).name


def signal_number(name: str) -> int:
    """Return the number of the signal that signal_name() called *name*.

    Raises:
        ValueError: there is none.
    """
    rest = name.removeprefix("SIGRT")
    if rest.isdecimal():
        return _RT_FIRST + int(rest)
    try:
        return signal.Signals[name]
    except KeyError:
        raise ValueError(f"unknown signal {name!r}") from None


def signal_set(mask: int) -> list[str]:
    """Return the names of the signals in *mask*, where bit N-1 is signal N."""
    return list(_signal_set(mask))


@functools.lru_cache
def _signal_set(mask: int) -> tuple[str, ...]:
    return tuple(signal_name(n + 1) for n in range(64) if mask >> n & 1)


def signal_mask(names: Iterable[str]) -> int:
    """Return the mask that signal_set() named.

    Raises:
        ValueError: *names* has one that is none.
    """
    return _signal_mask(tuple(names))


@functools.lru_cache
def _signal_mask(names: tuple[str, ...]) -> int:
    return sum(1 << signal_number(name) - 1 for name in names)
