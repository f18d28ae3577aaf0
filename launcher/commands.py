"""The commands that act: one function each, locked, with the library below."""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from launcher import attached, enter, entrance, holder, hosts, pods, program, users
from launcher import config as configuration
from launcher.config import PodConfig
from launcher.errors import Locked, PodError, SpawnFailed
from launcher.lock import locked
from launcher.places import Places, check_pod_name
from launcher.pods import ClockOffsets, Pod
from launcher.program import NULL, Program

if TYPE_CHECKING:
    from launcher.probe import AttemptRow

_AGAIN_S = 1.0


def describe(places: Places, name: str) -> list[str]:
    """Return the steps that would make pod *name*, a line each."""
    config = configuration.load(places, name)
    hosts_file = hosts.path(places, name) if config.network.mode != "none" else None
    base = users.planned(places, config)
    return pods.plan_of(places, config, ClockOffsets(), hosts_file, base).describe()


def start(places: Places, name: str, argv: list[str]) -> None:
    """Start a program in pod *name*, in the background, making the pod if it is not running.

    Without *argv* it is the pod's service. A program that is to be started again when it ends is
    left to the pod's keeper.
    """
    text, config = configuration.read(places, name)
    argv = program.command_line(config, argv or _service(config))
    with locked(places, name), _running(places, config):
        pod = _found(places, name)
        way_in = entrance.of(pod, config)
        entrance.keep(way_in, text)
        if config.log.size is not None:
            from launcher import logfile

            logfile.rotate(places, name, config.log)
            holder.connect(places, name).close()  # it cuts the log from now on
        if config.service.restart != "no" and argv == program.service(config):
            holder.keep(places, name, start=True).close()
            return
        log_fd = program.open_log(pod)
        try:
            files = (NULL, log_fd, log_fd)
            variables = program.environment(config)
            program.execute(way_in, Program(argv, variables, files, detached=True))
        finally:
            os.close(log_fd)


def run(places: Places, name: str, argv: list[str], with_terminal: bool, *, make: bool) -> int:
    """Run a program in pod *name*, attached; return its exit status as env(1) does.

    Where it runs already, launcher.cli may do the same in a shorter way.
    """
    text, config = configuration.read(places, name)
    made = False
    if not make:
        _found(places, name)
    try:
        with locked(places, name):
            made = make and pods.find(places, name) is None
            if made:
                pods.create(places, config)
            pod = _found(places, name)
            way_in = entrance.of(pod, config)
            entrance.keep(way_in, text)
            if with_terminal or os.isatty(0):
                from launcher import terminal

                session = terminal.start(places, way_in, argv)
            else:
                session = attached.start(way_in, argv)
        return explained(places, name, session.wait())
    except SpawnFailed as e:
        return attached.report(e)
    finally:
        if made:
            _end_if_empty(places, name)


def explained(places: Places, name: str, status: int) -> int:
    """Return the exit status of a program; say it if the kernel killed it for want of memory."""
    if status != attached.KILLED:
        return status
    from launcher import usage

    pod = pods.find(places, name)
    row = usage.of(pod) if pod is not None else None
    if row is not None and row.limit is not None and row.oom_killed:
        limit = f"the pod's {row.limit} KiB are used up"
        sys.stderr.write(f"launcher: the kernel killed {row.oom_killed}: {limit}\n")
    return status


def serve(places: Places, name: str) -> None:
    """Start the pod's service, or find it running; return when it is over and the pod has ended."""
    from launcher import serve as serving

    def begin() -> socket.socket:
        config = configuration.load(places, name)
        _service(config)
        with locked(places, name), _running(places, config):
            return holder.keep(places, name, start=not enter.pids(_found(places, name)))

    if serving.serve(places, name, begin):
        _stop_in_turn(places, name)


def _stop_in_turn(places: Places, name: str) -> None:
    """End the pod, unless whoever works on it does, as a checkpoint may."""
    while True:
        try:
            stop(places, name, None)
        except Locked:
            pod = pods.find(places, name)
            if pod is None:
                return
            with suppress(PodError):  # it has ended meanwhile
                pidfd = enter.pidfd(pod)
                select.select([pidfd], [], [], _AGAIN_S)
                os.close(pidfd)
        else:
            return


def _service(config: PodConfig) -> list[str]:
    if config.service.program is None:
        hint = "name a program, or set service.program in the pod's configuration"
        raise PodError(f"pod {config.name!r} has no service to start", hint)
    return [config.service.program]


@contextmanager
def _running(places: Places, config: PodConfig) -> Iterator[None]:
    """Make the pod if it is not running; end it again if what follows fails."""
    if pods.find(places, config.name) is not None:
        yield
        return
    pods.create(places, config)
    try:
        yield
    except BaseException:
        pods.destroy(places, config.name)
        raise


def _found(places: Places, name: str) -> Pod:
    pod = pods.find(places, check_pod_name(name))
    if pod is None:
        raise PodError(f"pod {name!r} is not running", f"launcher start {name} PROGRAM")
    return pod


def _check_known(places: Places, name: str) -> None:
    if check_pod_name(name) not in pods.names(places):
        raise PodError(f"there is no pod {name!r}", "launcher list")


def _end_if_empty(places: Places, name: str) -> None:
    """End the pod that `run` made, unless others use it by now."""
    with suppress(Locked), locked(places, name):
        pod = pods.find(places, name)
        if pod is not None and not enter.pids(pod):
            pods.destroy(places, name)


def stop(places: Places, name: str, timeout: float | None) -> None:
    """End pod *name*: SIGTERM to all, wait up to *timeout* seconds, kill what is left.

    None: as long as its configuration says.
    """
    _check_known(places, name)
    if timeout is None:
        timeout = configuration.load(places, name).service.stop_timeout
    with locked(places, name):
        pod = pods.find(places, name)
        if pod is not None:
            holder.leave(places, name)
            _terminate(pod, time.monotonic() + timeout)
        pods.destroy(places, name)


def _terminate(pod: Pod, deadline: float) -> None:
    """Send SIGTERM to all processes of *pod* and wait until none is left."""
    pidfds = []
    try:
        for pid in enter.pids(pod):
            with suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
                signal.pidfd_send_signal(pidfds[-1], signal.SIGTERM)
        for fd in pidfds:
            select.select([fd], [], [], max(0, deadline - time.monotonic()))
    finally:
        for fd in pidfds:
            os.close(fd)


def kill(places: Places, name: str) -> None:
    """Kill pod *name* and all its processes at once."""
    _check_known(places, name)
    with locked(places, name):
        pods.destroy(places, name)


def attach(places: Places, name: str, index: int | None) -> None:
    """Attach to terminal *index* of the pod, or to its only one, until that hangs up."""
    _found(places, name)
    from launcher import terminal

    terminal.attach(places, name, index)


def probe(places: Places, name: str) -> list["AttemptRow"]:
    """Make the attempts of launcher.probe in pod *name*, which must be running."""
    from launcher import probe as probing

    config = configuration.load(places, name)
    with locked(places, name):
        return probing.probe(_found(places, name), config)


def logs(places: Places, name: str, *, follow: bool) -> None:
    """Write the log of pod *name* to standard output."""
    path = places.log(check_pod_name(name))
    if not path.exists():
        raise PodError(f"pod {name!r} has no log", f"launcher start {name} PROGRAM")
    from launcher import logfile

    for part in logfile.parts(places, name)[: -1 if follow else None]:
        with suppress(FileNotFoundError), part.open("rb") as file:  # it may have been cut meanwhile
            while os.sendfile(1, file.fileno(), None, 1 << 20):
                pass
    if follow:
        for text in logfile.follow(places, name):
            os.write(1, text)
