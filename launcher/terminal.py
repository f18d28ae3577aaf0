"""A program with a terminal, attached to the caller's.

The caller's own terminal never goes into a pod: a program could push input into it, or keep it.
Where the program gets a terminal, it is one of the pod's devpts, whose master is handed to the
holder, so that it outlives the caller; where only its output would be a terminal, a pipe is put
in between (launcher.attached).
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import tty
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from launcher import abi, attached, holder, program, userns
from launcher.attached import Forwarder, Session
from launcher.errors import PodError
from launcher.places import Places
from launcher.program import Program

if TYPE_CHECKING:
    from launcher.entrance import Entrance
    from launcher.pods import Pod


class _Session(Session):
    """A program with a terminal."""

    def __init__(
        self,
        pid: int,
        signals: Forwarder,
        copies: Mapping[int, int],
        attachment: holder.Attachment,
    ) -> None:
        super().__init__(pid, signals, copies)
        self._attachment = attachment

    def relay(self, pidfd: int) -> None:  # type: ignore[explicit-override]
        """Relay until the program has ended, or somebody else has attached to its terminal."""
        with _raw(self._attachment):
            control = self._attachment.connection.fileno()
            attached.relay(self.copies, pidfd, control, self.signals.wakeup)

    def close(self) -> None:  # type: ignore[explicit-override]
        """Leave the terminal to the holder."""
        self._attachment.close()


def start(places: Places, pod: Entrance, argv: list[str]) -> Session:
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
        argv = program.command_line(pod, argv)
        variables = program.environment(pod, TERM=os.environ.get("TERM", "dumb"))
        stdio = (slave_fd, slave_fd, slave_fd)
        copies = {0: attachment.master_fd, attachment.master_fd: 1}
        the_program = Program(argv, variables, stdio, terminal=True)
        session = _Session(*attached.executed(pod, the_program), copies, attachment)
        undo.pop_all()
    return session


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
            attached.write(1, attachment.recent)
            taken = attached.relay(copies, None, attachment.connection.fileno())
        if taken:
            raise PodError(f"somebody else has attached to terminal {attachment.index}")
    finally:
        attachment.close()


def open_terminal(pod: Pod | Entrance) -> tuple[int, int, int]:
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


@contextmanager
def _raw(attachment: holder.Attachment) -> Iterator[None]:
    """Let the pod's terminal see every key, and follow the size of ours, if we have one."""
    if not os.isatty(0):
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
