"""A program attached to the caller: its streams, its signals, its exit status.

Where its output would be the caller's terminal, a pipe is put in between (launcher.terminal says
why, and has the programs that are given a terminal).
"""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress

from launcher import program
from launcher.program import Program

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

    from launcher.entrance import Entrance
    from launcher.errors import SpawnFailed

_CHUNK: Final = 16384
_DETACH: Final = b"\x1d\x1d\x1d"
_END_OF_FILE: Final = b"\x04"
_FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FAILED, _NOT_EXECUTABLE, _NOT_FOUND = 125, 126, 127
KILLED: Final = 128 + signal.SIGKILL
"""The exit status of a program that SIGKILL has ended."""


class Forwarder:
    """Passes signals that ask something of a program on to it.

    It listens before the program is started, so that none is lost, or ends us, in between. What
    waits must also poll *wakeup*: Python calls a handler only when the wait is over, and a signal
    that comes just before the wait does not end it (signal.set_wakeup_fd()).
    """

    def __init__(self) -> None:
        self._pid = 0
        self._early: list[int] = []
        self.wakeup, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._receive) for number in _FORWARDED}

    def begin(self, pid: int) -> None:
        """Forward to process *pid*, also what has come in already."""
        self._pid = pid
        for number in self._early:
            self._receive(number, None)

    def end(self) -> None:
        """Forward no more."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self.wakeup)
        os.close(self._writer)

    def _receive(self, number: int, _frame: object) -> None:
        if not self._pid:
            self._early.append(number)
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)


class Session:
    """An attached program.

    Attributes:
        pid: of the program, on the host; our child.
        signals: go to it until it has ended.
        copies: what to relay: descriptor to read -> descriptor to write.
    """

    def __init__(self, pid: int, signals: Forwarder, copies: Mapping[int, int]) -> None:
        self.pid, self.signals, self.copies = pid, signals, copies

    def wait(self) -> int:
        """Relay until the program has ended; return its status as env(1) does."""
        pidfd = os.pidfd_open(self.pid)
        self.relay(pidfd)
        os.close(pidfd)
        self.close()
        self.signals.end()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def relay(self, pidfd: int) -> None:
        """Relay until the program, for which *pidfd* stands, has ended."""
        relay(self.copies, pidfd, None, self.signals.wakeup)

    def close(self) -> None:
        """Give up what was relayed."""
        for reader in self.copies:
            os.close(reader)


def start(pod: Entrance, argv: list[str]) -> Session:
    """Start a program with the caller's streams; a program alone gets its configured arguments.

    Raises:
        SpawnFailed: it could not be executed.
        PodError: the pod has ended.
    """
    copies: dict[int, int] = {}
    stdio = [0, 1, 2]
    for fd in (1, 2):
        if os.isatty(fd):
            reader, stdio[fd] = os.pipe2(os.O_CLOEXEC)
            copies[reader] = fd
    argv, variables = program.command_line(pod, argv), program.environment(pod)
    the_program = Program(argv, variables, (stdio[0], stdio[1], stdio[2]))
    try:
        return Session(*executed(pod, the_program), copies)
    finally:
        for fd in set(stdio) - {0, 1, 2}:
            os.close(fd)


def executed(pod: Entrance, the_program: Program) -> tuple[int, Forwarder]:
    """Execute a program; return its pid, and what forwards our signals to it."""
    signals = Forwarder()
    try:
        pid = program.execute(pod, the_program)
    except BaseException:
        signals.end()
        raise
    signals.begin(pid)
    return pid, signals


def report(e: SpawnFailed) -> int:
    """Say why a program could not be executed; return the exit status."""
    os.write(2, f"launcher: error: {e}\n".encode(errors="backslashreplace"))
    if e.errno in (errno.ENOENT, errno.ENOTDIR):
        return _NOT_FOUND
    return _NOT_EXECUTABLE if e.errno in (errno.EACCES, errno.ENOEXEC) else _FAILED


def relay(
    copies: Mapping[int, int], until: int | None, control: int | None, wakeup: int | None = None
) -> bool:
    """Copy between descriptors until *until* is readable, or all but standard input have ended.

    Args:
        copies: descriptor to read -> descriptor to write.
        until: ends the copying, after what is there already.
        control: ends it at once.
        wakeup: lets the handlers of signals run.

    Returns:
        True if *control* ended it.
    """
    reading = dict(copies)
    typed = b""
    while reading.keys() - {0} or until is not None:
        ready = _ready(fd for fd in (*reading, until, control, wakeup) if fd is not None)
        if wakeup is not None and wakeup in ready:
            os.read(wakeup, _CHUNK)
        for fd in [fd for fd in reading if fd in ready]:
            data = _read(fd)
            typed = (typed + data)[-len(_DETACH) :] if fd == 0 else typed
            if typed == _DETACH and control is not None and until is None:
                return False
            if data:
                write(reading[fd], data)
            else:
                _end(fd, reading)
        if control in ready:
            return True
        if until in ready:
            _drain(reading)
            return False
    return False


def _end(fd: int, reading: dict[int, int]) -> None:
    """Read *fd* no more; a terminal is told of the end of our input as a user would."""
    target = reading.pop(fd)
    if fd == 0:
        with suppress(OSError):
            os.write(target, _END_OF_FILE)


def _drain(reading: Mapping[int, int]) -> None:
    """Copy what is there already; others may hold the writing ends for long."""
    for fd, target in reading.items():
        while fd != 0 and _ready([fd], 0) and (data := _read(fd)):
            write(target, data)


def _ready(fds: Iterable[int], timeout_ms: int | None = None) -> set[int]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(timeout_ms)}


def _read(fd: int) -> bytes:
    """Return what can be read; b"" at the end, which for a master is EIO."""
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""


def write(fd: int, data: bytes) -> None:
    """Write all of *data*."""
    while data:
        data = data[os.write(fd, data) :]
