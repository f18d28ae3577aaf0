"""Who answers a pod's emulated calls: the monitor, and its hands in the pod.

Two processes, children of the holder, which live and die together: the monitor (launcher.monitor)
on trio, in a fresh interpreter, and the mounter (launcher.mounter), forked. Calls that were
received and not answered are in the slots (launcher.listener), which outlive both.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Final

from launcher import abi, mounter
from launcher.listener import Slots

_PAUSE_S: Final = 0.5
"""The least time between two starts."""


class Crew:
    """The monitor and its hands, for one pod; started with the first listener."""

    def __init__(self, name: str, pod_fd: int) -> None:
        self._name, self._pod_fd = name, pod_fd
        self._slots_fd = -1
        self._channel: socket.socket | None = None
        self._children: dict[int, int] = {}  # pid -> pidfd
        self._started = float("-inf")

    @property
    def pidfds(self) -> Iterable[int]:
        """Become readable when one of them has ended."""
        return self._children.values()

    def patience_ms(self, listeners: Mapping[int, int]) -> float | None:
        """Return in how many milliseconds tend() has something to do at the latest."""
        if self._channel is not None or not listeners:
            return None
        return 1000 * max(0.0, self._started + _PAUSE_S - time.monotonic())

    def give(self, slot: int, listener_fd: int) -> None:
        """Let the monitor answer on a listener, using *slot*."""
        if self._channel is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # tend() will see
                socket.send_fds(self._channel, [str(slot).encode()], [listener_fd])

    def tend(self, listeners: Mapping[int, int]) -> None:
        """Start both, anew if one has ended, if there are *listeners* (slot -> descriptor)."""
        if self._children and any(map(_has_ended, self._children.values())):
            self.end()
        if self.patience_ms(listeners) == 0:
            self._start()
            for slot, listener_fd in listeners.items():
                self.give(slot, listener_fd)

    def end(self) -> None:
        """Kill both."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for pid, pidfd in self._children.items():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
        self._children.clear()

    def _start(self) -> None:
        self._started = time.monotonic()
        if self._slots_fd < 0:
            self._slots_fd = Slots.create()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        requests, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, requests, answers:
            self._adopt(self._fork_mounter(answers))
            fds = (theirs.fileno(), requests.fileno(), self._slots_fd, self._pod_fd)
            monitor = subprocess.Popen(
                [sys.executable, "-P", "-m", "launcher.monitor", self._name, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
            monitor.returncode = 0  # end() waits for it
            self._adopt(monitor.pid)

    def _adopt(self, pid: int) -> None:
        self._children[pid] = os.pidfd_open(pid)

    def _fork_mounter(self, channel: socket.socket) -> int:
        """Fork the mounter, with nothing of the holder's but its channel."""
        pid = os.fork()
        if pid:
            return pid
        try:
            keep = sorted((channel.fileno(), self._pod_fd))
            for first, last in zip((3, *(fd + 1 for fd in keep)), (*keep, 1 << 32), strict=True):
                if first < last:
                    abi.close_range(first, last - 1, 0)
            mounter.run(channel, self._pod_fd)
        finally:
            os._exit(1)


def _has_ended(pidfd: int) -> bool:
    return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
