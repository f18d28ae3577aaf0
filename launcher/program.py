"""Programs into a running pod.

Stages, each a child of the one before:

1. the launcher opens what cannot be reached from inside: the log, `cgroup.procs`;
2. *entrant* enters all namespaces of the pod but the pid namespace, which takes in children only
   (setns(2)), and exits;
3. *program* joins the control groups, loses its privileges, and executes. Its parent is the
   launcher, a child subreaper meanwhile; where it is to outlive the launcher, one more stage forks
   and exits, and the pod's init becomes its parent.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from contextlib import ExitStack, closing, contextmanager

from launcher import abi, confine, enter, spawn, userns
from launcher.errors import PodError, SpawnFailed
from launcher.spawn import Report

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Final, NoReturn

    from launcher.config import PodConfig
    from launcher.entrance import Entrance
    from launcher.pods import Pod

_NAMESPACES: Final = (
    abi.CLONE_NEWNS
    | abi.CLONE_NEWPID
    | abi.CLONE_NEWIPC
    | abi.CLONE_NEWUTS
    | abi.CLONE_NEWNET
    | abi.CLONE_NEWCGROUP
    | abi.CLONE_NEWTIME
)
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
NULL: Final = -1
"""In place of a descriptor: the pod's /dev/null."""


class Program:
    """A program to be executed in a pod.

    Attributes:
        argv: its name or path in the pod, and its arguments.
        environment: all of it.
        stdio: the launcher's descriptors that become its 0, 1 and 2; NULL for /dev/null.
        detached: a child of the pod's init, not of the launcher.
        terminal: descriptor 0 is a terminal, and becomes its controlling terminal.
        body: runs in place of the program, in the launcher's own code: whatever it needs is
            imported, and it must close or mark what it has opened (launcher.probe).
    """

    def __init__(
        self,
        argv: list[str],
        environment: Mapping[str, str],
        stdio: tuple[int, int, int],
        *,
        detached: bool = False,
        terminal: bool = False,
        body: Callable[[], None] | None = None,
    ) -> None:
        self.argv, self.environment, self.stdio = argv, environment, stdio
        self.detached, self.terminal, self.body = detached, terminal, body


def environment(pod: Entrance | PodConfig, **more: str) -> dict[str, str]:
    """Return what the pod's programs find in their environment."""
    return {**_ENVIRONMENT, **more, **pod.environment}


def command_line(pod: Entrance | PodConfig, argv: list[str]) -> list[str]:
    """Return *argv*; a program alone gets the arguments that the configuration has for it."""
    return argv if len(argv) > 1 else [*argv, *pod.arguments.get(argv[0], ())]


def service(config: PodConfig) -> list[str]:
    """Return the command line of the pod's service, which it has."""
    return command_line(config, [config.service.program or ""])


def open_log(pod: Pod) -> int:
    """Return the log file of the pod, open for appending; made if it is missing.

    It is the pod's root's, so that programs can open it again (/dev/stdout), as far as they get:
    the directory is the host's.
    """
    places, name = pod.places, pod.name
    places.states().mkdir(mode=0o755, parents=True, exist_ok=True)
    places.state(name).mkdir(mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(places.log(name), flags, 0o600)
    base = userns.base(pod.init_pid) or 0
    os.fchown(fd, base, base)
    return fd


def execute(pod: Entrance, program: Program) -> int:
    """Execute *program* in the pod; return when it runs.

    A program that is not detached becomes a child of the calling process, which has to wait for
    it (wait(2)).

    Returns:
        The program's pid on the host; 0 if it is detached.

    Raises:
        SpawnFailed: it could not be executed; `errno` is execve(2)'s.
        PodError: the pod has ended.
    """
    if program.detached:
        return _Entry(pod, program).make()
    with _child_subreaper():
        return _Entry(pod, program).make()


@contextmanager
def _child_subreaper() -> Iterator[None]:
    """Become the parent of orphaned descendants, as prctl(2) describes, for as long as needed."""
    before = ctypes.c_int()
    abi.prctl(abi.PR_GET_CHILD_SUBREAPER, ctypes.addressof(before))
    abi.prctl(abi.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        abi.prctl(abi.PR_SET_CHILD_SUBREAPER, before.value)


class _Entry:
    """What the stages share; they are forks of one another."""

    def __init__(self, pod: Entrance, program: Program) -> None:
        self._pod, self._program = pod, program
        self._confinement = confine.at_most_ours(pod.confinement)
        self._report = Report()

    def make(self) -> int:
        with ExitStack() as opened:
            self._pidfd = enter.pidfd(self._pod)
            self._base = userns.of(self._pidfd)
            opened.callback(os.close, self._pidfd)
            self._cgroup_fds = enter.open_control_groups(self._pod.groups)
            for fd in self._cgroup_fds:
                opened.callback(os.close, fd)
            self._hand_over = self._reach_holder(opened)
            entrant = spawn.fork(self._enter, self._report)
        self._report.listen()
        with closing(self._report):
            return self._wait(entrant)

    def _reach_holder(self, opened: ExitStack) -> Callable[[int], None] | None:
        """Return what hands a listener to the pod's holder; None where no filter has one."""
        if self._confinement.install is None:
            return None
        from pathlib import Path

        from launcher import holder
        from launcher.places import Places

        places = Places(Path(self._pod.prefix))
        connection = opened.enter_context(holder.connect(places, self._pod.name))

        def hand_over(listener_fd: int) -> None:
            try:
                holder.give_listener(connection, listener_fd)
            except PodError as e:
                raise OSError(errno.EPIPE, str(e)) from e

        return hand_over

    def _wait(self, entrant: int) -> int:
        """Wait for the entrant, by whose end the program becomes our child, and for the program."""
        pid = 0
        try:
            pid = int(self._report.expect("pid"))
            os.waitpid(entrant, 0)
            entrant = 0
            self._report.expect("ready")
            self._report.finish()
        except SpawnFailed:
            for child in (entrant, 0 if self._program.detached else pid):
                if child:
                    os.waitpid(child, 0)
            raise
        return 0 if self._program.detached else pid

    def _enter(self) -> None:
        spawn.hide()
        abi.setns(self._pidfd, _NAMESPACES)
        pid = spawn.fork(self._inside, self._report)
        self._report.say("pid", pid)
        if self._program.detached:
            os.waitpid(pid, 0)

    def _inside(self) -> None:
        if self._program.detached:
            spawn.fork(self._become, self._report)
        else:
            self._become()

    def _become(self) -> NoReturn:
        program = self._program
        enter.join_control_groups(self._cgroup_fds)
        os.setsid()
        spawn.become_ordinary()
        _place_stdio(program.stdio, self._base)
        if program.terminal:
            fcntl.ioctl(0, abi.TIOCSCTTY, 0)
        if self._base is not None:
            abi.setns(self._pidfd, abi.CLONE_NEWUSER)
            userns.become_root()
        self._report.say("ready")
        spawn.close_on_exec()
        listener_fd = confine.apply(self._confinement)
        if listener_fd is not None and self._hand_over is not None:
            self._hand_over(listener_fd)
        if program.body is None:
            _exec(program.argv, program.environment)
        program.body()
        os._exit(0)


def _place_stdio(stdio: Sequence[int], base: int | None) -> None:
    """Make *stdio* descriptors 0, 1 and 2.

    A pipe becomes that of the pod's root: who cannot open it anew has no /dev/stdout.
    """
    if base is not None:
        for fd in stdio:
            if fd != NULL and abi.fstatfs_type(fd) == abi.PIPEFS_MAGIC:
                os.fchown(fd, base, base)
    placed = [_open_null() if fd == NULL else os.dup(fd) for fd in stdio]
    for number, fd in enumerate(placed):
        os.dup2(fd, number)


def _open_null() -> int:
    """Open the pod's /dev/null: programs of the pod may have put something else there."""
    fd = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        raise OSError(errno.ENXIO, "is not the null device", "/dev/null")
    os.set_blocking(fd, True)
    return fd


def _exec(argv: list[str], variables: Mapping[str, str]) -> NoReturn:
    """Execute argv[0], searched in PATH as execvp(3) does."""
    name, missing = argv[0], errno.ENOENT
    directories = [""] if "/" in name else variables.get("PATH", "").split(":")
    for directory in directories if name else ():
        try:
            os.execve(os.path.join(directory, name), argv, variables)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            missing = e.errno or missing
    raise OSError(missing, f"cannot execute {name!r}: {os.strerror(missing)}")
