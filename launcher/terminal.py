"""A program attached to the caller: its streams, its terminal, its signals, its exit status.

The caller's own terminal never goes into a pod: a program could push input into it, or keep it.
Where the program gets a terminal, it is one of the pod's devpts, whose master is handed to the
holder, so that it outlives the caller; where only its output would be a terminal, a pipe is put
in between.
"""

import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from msgspec import Struct

from launcher import abi, holder, program, userns
from launcher.config import PodConfig
from launcher.errors import PodError
from launcher.places import Places
from launcher.pods import Pod
from launcher.program import Program

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


class Session(Struct, frozen=True):
    """An attached program.

    Attributes:
        pid: of the program, on the host; our child.
        signals: go to it until it has ended.
        copies: what to relay: descriptor to read -> descriptor to write.
        attachment: its terminal, if it has one.
    """

    pid: int
    signals: Forwarder
    copies: Mapping[int, int]
    attachment: holder.Attachment | None = None

    def wait(self) -> int:
        """Relay until the program has ended; return its status as env(1) does."""
        pidfd = os.pidfd_open(self.pid)
        with _raw(self.attachment):
            relay(self.copies, pidfd, _control(self.attachment), self.signals.wakeup)
        os.close(pidfd)
        self._close()
        self.signals.end()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _close(self) -> None:
        if self.attachment is not None:
            self.attachment.close()
            return
        for reader in self.copies:
            os.close(reader)


def start_plain(pod: Pod, config: PodConfig, argv: list[str]) -> Session:
    """Start a program with the caller's streams."""
    copies: dict[int, int] = {}
    stdio = [0, 1, 2]
    for fd in (1, 2):
        if os.isatty(fd):
            reader, stdio[fd] = os.pipe2(os.O_CLOEXEC)
            copies[reader] = fd
    variables = program.environment(config)
    try:
        return _start(pod, config, Program(argv, variables, (stdio[0], stdio[1], stdio[2])), copies)
    finally:
        for fd in set(stdio) - {0, 1, 2}:
            os.close(fd)


def start(places: Places, pod: Pod, config: PodConfig, argv: list[str]) -> Session:
    """Start a program with a terminal of the pod, attached to it before it can write."""
    master_fd, slave_fd, index = open_terminal(pod)
    with ExitStack() as opened:
        opened.callback(os.close, slave_fd)
        with os.fdopen(master_fd, "rb"):
            _copy_window_size(master_fd)
            holder.give_console(places, pod.name, index, master_fd)
        attachment = holder.attach(places, pod.name, index)
        undo = opened.enter_context(ExitStack())
        undo.callback(attachment.close)
        variables = program.environment(config, TERM=os.environ.get("TERM", "dumb"))
        stdio = (slave_fd, slave_fd, slave_fd)
        copies = {0: attachment.master_fd, attachment.master_fd: 1}
        the_program = Program(argv, variables, stdio, terminal=True)
        session = _start(pod, config, the_program, copies, attachment)
        undo.pop_all()
    return session


def _start(
    pod: Pod,
    config: PodConfig,
    the_program: Program,
    copies: Mapping[int, int],
    attachment: holder.Attachment | None = None,
) -> Session:
    signals = Forwarder()
    try:
        pid = program.execute(pod, config, the_program)
    except BaseException:
        signals.end()
        raise
    signals.begin(pid)
    return Session(pid, signals, copies, attachment)


def attach(places: Places, name: str, index: int | None) -> None:
    """Relay between the caller and terminal *index* until it hangs up, or the user detaches.

    Raises:
        PodError: there is no such terminal, or somebody else has attached to it.
    """
    attachment = holder.attach(places, name, index)
    try:
        _copy_window_size(attachment.master_fd)
        copies = {0: attachment.master_fd, attachment.master_fd: 1}
        with _raw(attachment):
            _write(1, attachment.recent)
            taken = relay(copies, None, _control(attachment))
        if taken:
            raise PodError(f"somebody else has attached to terminal {attachment.index}")
    finally:
        attachment.close()


def open_terminal(pod: Pod) -> tuple[int, int, int]:
    """Return master, slave and index of a new terminal of the pod's devpts.

    Both are opened without a walk through names that the pod could have changed: the master by
    openat2(2) without symbolic links, the slave by TIOCGPTPEER (ioctl_tty(2)).
    """
    root_fd = os.open(f"/proc/{pod.init_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_SYMLINKS | abi.RESOLVE_NO_MAGICLINKS
        flags = os.O_RDWR | os.O_NOCTTY
        master_fd = abi.openat2(root_fd, "/dev/pts/ptmx", flags, resolve)
    finally:
        os.close(root_fd)
    if abi.fstatfs_type(master_fd) != abi.DEVPTS_SUPER_MAGIC:
        os.close(master_fd)
        raise PodError(f"pod {pod.name!r}: /dev/pts is no devpts")
    fcntl.ioctl(master_fd, abi.TIOCSPTLCK, struct.pack("i", 0))
    # With O_CLOEXEC here, proc_pid_fdinfo(5) would show the flag for good (tried on 6.18), and a
    # checkpoint would believe it.
    slave_fd = fcntl.ioctl(master_fd, abi.TIOCGPTPEER, flags)
    os.set_inheritable(slave_fd, False)
    base = userns.base(pod.init_pid)
    if base is not None:
        os.fchown(slave_fd, base, -1)
    index = struct.unpack("i", fcntl.ioctl(master_fd, abi.TIOCGPTN, b"\0" * 4))[0]
    return master_fd, slave_fd, index


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
                _write(reading[fd], data)
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
            _write(target, data)


def _ready(fds: "Iterator[int] | list[int]", timeout_ms: int | None = None) -> set[int]:
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


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _control(attachment: holder.Attachment | None) -> int | None:
    return None if attachment is None else attachment.connection.fileno()


@contextmanager
def _raw(attachment: holder.Attachment | None) -> Iterator[None]:
    """Let the pod's terminal see every key, and follow the size of ours, if we have one."""
    if attachment is None or not os.isatty(0):
        yield
        return
    old = termios.tcgetattr(0)
    resize = signal.signal(signal.SIGWINCH, lambda *_: _copy_window_size(attachment.master_fd))
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what is typed ahead stays
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, old)
        signal.signal(signal.SIGWINCH, resize)


def _copy_window_size(master_fd: int) -> None:
    if os.isatty(0):
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(master_fd, termios.TIOCSWINSZ, size)
