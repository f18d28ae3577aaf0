"""The keeper: starts a pod's service, and starts it again when it ends, as `service.restart` says.

A process forked by the pod's holder, which replaces it if it is killed, and with which it dies. The
program is its child, so that it learns how it ended. A program that ends well and leaves others
running has gone to the background: then the service lasts as long as any process of the pod. So it
is, too, where the program is not our child: after a restart from an archive, or if the keeper
before was killed.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import Final, NoReturn

import msgspec

from launcher import abi, enter, entrance, pods, program
from launcher import config as configuration
from launcher.config import PodConfig
from launcher.errors import Locked, PodError
from launcher.holder import Reply
from launcher.lock import locked
from launcher.places import Places
from launcher.pods import Pod
from launcher.program import NULL, Program
from launcher.toml import ConfigError

_STEADY_S: Final = 10.0
"""Who has run so long has not failed at once."""
_FIRST_S, _LONGEST_S = 0.1, 60.0
_AGAIN_S: Final = 0.5
_OVER, _FAILED = 0, 3
"""Exit statuses of the keeper, where the service is over; with others it is replaced."""


def again(policy: str, status: int | None) -> bool:
    """Is a service that has ended with *status* (None: unknown) started again? Pure."""
    return policy == "always" or (policy == "on-failure" and status != 0)


def delay(failures: int) -> float:
    """Return the seconds before a start after so many failures in a row. Pure."""
    return min(_LONGEST_S, _FIRST_S * 2.0 ** min(failures, 16))


# --- in the holder -------------------------------------------------------------------------


class Keeper:
    """The keeper of a pod, if there is any, for its holder."""

    def __init__(self, name: str, pod_fd: int) -> None:
        self._name, self._pod_fd = name, pod_fd
        self._pid, self._pidfd = 0, -1
        self._visitors: list[socket.socket] = []
        self._again_at: float | None = None
        self._verdict: Reply | None = None  # how the service has ended, if it is over

    @property
    def fds(self) -> list[int]:
        """Become readable when tend() has something to do."""
        return [*(v.fileno() for v in self._visitors), *([self._pidfd] if self._pid else [])]

    def patience_ms(self) -> float | None:
        """Return in how many milliseconds tend() has something to do at the latest."""
        return None if self._again_at is None else _ms_until(self._again_at)

    def ask(self, visitor: socket.socket, *, start: bool) -> None:
        """Keep the service from now on; *visitor* is answered, and told when it is over.

        Args:
            visitor: a connection; taken over.
            start: the service does not run yet.
        """
        self._visitors.append(visitor)
        if not (self._pid or self._again_at is not None or (self._verdict and not start)):
            self._fork(visitor, start=start)
            return
        visitor.send(msgspec.json.encode(Reply()))
        if self._verdict and not self._pid:
            self._part(self._verdict)

    def tend(self, ready: Iterable[int]) -> None:
        """See to what became readable, and to what is due."""
        for visitor in [v for v in self._visitors if v.fileno() in ready]:
            visitor.close()  # it says nothing: it has hung up
            self._visitors.remove(visitor)
        if self._pid and self._pidfd in ready:
            _, status = os.waitpid(self._pid, 0)
            self._gone()
            code = os.waitstatus_to_exitcode(status)
            if code in {_OVER, _FAILED}:
                self._verdict = Reply(error="the pod's service has failed" if code else None)
                self._part(self._verdict)
            else:
                self._again_at = time.monotonic() + _AGAIN_S
        if self._again_at is not None and _ms_until(self._again_at) == 0:
            self._again_at = None
            self._fork(None, start=False)

    def leave(self) -> None:
        """Keep the service no more; it goes on."""
        if self._pid:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._gone()
        self._again_at = None
        self._part(Reply())

    def _gone(self) -> None:
        os.close(self._pidfd)
        self._pid, self._pidfd = 0, -1

    def _part(self, reply: Reply) -> None:
        """Tell the visitors how it ended, and close them."""
        while self._visitors:
            with self._visitors.pop() as visitor, suppress(OSError):
                visitor.send(msgspec.json.encode(reply), socket.MSG_DONTWAIT)

    def _fork(self, visitor: socket.socket | None, *, start: bool) -> None:
        holder_pid = os.getpid()
        self._verdict = None
        self._pid = os.fork()
        if not self._pid:
            keep = {self._pod_fd, *(() if visitor is None else (visitor.fileno(),))}
            abi.prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != holder_pid:
                os._exit(1)
            _become(self._name, keep, visitor, start=start)
        self._pidfd = os.pidfd_open(self._pid)


def _ms_until(moment: float) -> float:
    return 1000 * max(0.0, moment - time.monotonic())


def _become(name: str, keep: set[int], visitor: socket.socket | None, *, start: bool) -> NoReturn:
    """Be the keeper, with nothing of the holder's but the descriptors *keep*."""
    status = 1
    try:
        for text in os.listdir("/proc/self/fd"):
            if int(text) > 2 and int(text) not in keep:
                with suppress(OSError):  # that of the listing
                    os.close(int(text))
        has_failed = _run(Places.from_environment(), name, visitor, start=start)
        status = _FAILED if has_failed else _OVER
    finally:
        if (error := sys.exc_info()[1]) is not None:
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        os._exit(status)


# --- in the process of its own -------------------------------------------------------------


def _run(places: Places, name: str, visitor: socket.socket | None, *, start: bool) -> bool:
    """Keep the service until it is over, or the pod; has it failed?"""
    pod = pods.find(places, name)
    if pod is None:
        return False
    with closing(_Service(places, pod, configuration.load(places, name))) as service:
        if start:
            try:
                service.start()
            except (PodError, OSError) as e:
                _answer(visitor, Reply(error=str(e)))
                return True
        _answer(visitor, Reply())
        return service.keep()


def _answer(visitor: socket.socket | None, reply: Reply) -> None:
    if visitor is not None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it does not wait for it any more
            visitor.send(msgspec.json.encode(reply))
        visitor.close()


class _Service:
    """A service, and its program if that is our child."""

    def __init__(self, places: Places, pod: Pod, config: PodConfig) -> None:
        self._places, self._pod, self._config = places, pod, config
        self._pod_fd = enter.pidfd(pod)
        self._pid = 0

    def close(self) -> None:
        os.close(self._pod_fd)

    def start(self) -> None:
        """Start the program."""
        self._config = configuration.load(self._places, self._pod.name)
        argv = program.service(self._config)
        log_fd = program.open_log(self._pod)
        try:
            stdio = (NULL, log_fd, log_fd)
            what = Program(argv, program.environment(self._config), stdio)
            self._pid = program.execute(entrance.of(self._pod, self._config), what)
        finally:
            os.close(log_fd)

    def keep(self) -> bool:
        """Return when the service is over, or the pod; has it failed?"""
        failures = 0
        while True:
            began = time.monotonic()
            status = self._wait()
            if self._has_ended(0):
                return False
            if not again(self._config.service.restart, status):
                return bool(status)
            failures = 0 if time.monotonic() - began > _STEADY_S else failures + 1
            self._say(f"{_how(status)}; started again in {delay(failures):g} s")
            if self._has_ended(delay(failures)) or not self._start_again():
                return False

    def _start_again(self) -> bool:
        """Start the program anew; False if the pod has ended. One that cannot start has failed."""
        while True:
            try:
                with locked(self._places, self._pod.name):
                    if self._has_ended(0):
                        return False
                    self.start()
            except Locked:  # by a checkpoint, say, which may end the pod
                if self._has_ended(_AGAIN_S):
                    return False
                continue
            except (PodError, OSError, ConfigError) as e:
                self._say(str(e))
                self._pid = -1
            return True

    def _wait(self) -> int | None:
        """Wait for the end of the service; return its status, if known; a signal is negative."""
        pid, self._pid = self._pid, 0
        if pid < 0:
            return 125
        if pid:
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            if code or not enter.pids(self._pod):
                return code
        while not self._has_ended(0) and (left := enter.pids(self._pod)):
            for other in left:
                self._wait_for(other)
        return None

    def _wait_for(self, pid: int) -> None:
        """Wait for the end of a process that is not our child."""
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            select.select([pidfd, self._pod_fd], [], [])
            os.close(pidfd)

    def _has_ended(self, within_s: float) -> bool:
        """Wait so long for the end of the pod; has it ended?"""
        return bool(select.select([self._pod_fd], [], [], within_s)[0])

    def _say(self, text: str) -> None:
        """Write a line to the pod's log."""
        log_fd = program.open_log(self._pod)
        os.write(log_fd, f"launcher: {self._config.service.program}: {text}\n".encode())
        os.close(log_fd)


def _how(status: int | None) -> str:
    if status is None:
        return "ended"
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
