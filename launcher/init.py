"""The first process of a pod: made by the plan, then Debian's catatonit in pause mode.

It reaps, and ends the pod when it ends. Stages, each of which the next needs:

1. *builder*, a child of the launcher in the host's pid namespace, takes the outside steps of the
   plan: it may pass the barrier directory, and knows both roots until it pivots.
2. *init*, its child and the first process of the pod's pid namespace, takes the inside steps:
   a proc file system belongs to the pid namespace of whoever makes it. The builder then exits.
3. init waits for the launcher to have written down its pid. If the launcher dies before, the
   pipe ends, init exits, and with it everything of the pod.
4. init loses its privileges and executes catatonit from a sealed memfd that nobody in the pod can
   read: /proc/1/exe leads to no file of the host, and init is not dumpable.
"""

import fcntl
import os
import signal
from typing import Final, NoReturn

from launcher import abi, confine, spawn
from launcher.confine import Confinement
from launcher.execute import Executor
from launcher.plan import Plan
from launcher.spawn import Report

PROGRAM: Final = "/usr/bin/catatonit"
_MODE: Final = 0o101
"""To execute, not to read: exec then leaves the process non-dumpable. In a user namespace it runs
as one of the others, and its memory stays the host's (fs/exec.c, would_dump(), v6.1)."""


class Init:
    """A pod's first process, waiting for begin()."""

    def __init__(self, plan: Plan, confinement: Confinement, cgroup_fds: list[int]) -> None:
        """Build the pod up to the point where init waits.

        Args:
            plan: of the pod.
            confinement: for init.
            cgroup_fds: `cgroup.procs` of its groups, open for writing; not closed.

        Raises:
            SpawnFailed: a step failed; nothing is left.
            OSError: catatonit is not installed.
        """
        self._report = Report()
        self._waiting, self._go = os.pipe2(os.O_CLOEXEC)
        self._plan, self._confinement = plan, confinement
        self._executor = Executor(cgroup_fds)
        self._program_fd = _sealed_program()
        builder = spawn.fork(self._build, self._report)
        self._report.listen()
        os.close(self._waiting)
        os.close(self._program_fd)
        try:
            self.pid = int(self._report.expect("pid"))
            self._report.expect("ready")
        except BaseException:
            self.close()
            raise
        finally:
            os.waitpid(builder, 0)

    def begin(self) -> None:
        """Let init execute its program.

        Raises:
            SpawnFailed: it could not.
        """
        os.write(self._go, b"g")
        self._report.finish()

    def close(self) -> None:
        """Give up our hold; before begin() that ends init."""
        os.close(self._go)
        self._report.close()

    def _build(self) -> None:
        os.close(self._go)
        spawn.hide()
        os.umask(0)
        self._executor.run(self._plan.outside)
        self._report.say("pid", spawn.fork(self._first, self._report))

    def _first(self) -> NoReturn:
        self._executor.run(self._plan.inside)
        os.setsid()
        null_fd = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW)
        for fd in (0, 1, 2):
            os.dup2(null_fd, fd)
        self._report.say("ready")
        if not os.read(self._waiting, 1):
            os._exit(1)
        spawn.become_ordinary()
        spawn.close_on_exec()
        confine.apply(self._confinement)
        os.execve(self._program_fd, ["init", "-P"], {})  # noqa: S606


def _sealed_program() -> int:
    """Return a descriptor of a copy of catatonit that can be executed, but not read or changed."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("init", flags | abi.MFD_EXEC)
    except OSError:  # before Linux v6.3 there is no such flag, and every memfd can be executed
        fd = os.memfd_create("init", flags)
    with open(PROGRAM, "rb") as program:
        while os.sendfile(fd, program.fileno(), None, 1 << 20):
            pass
    os.fchmod(fd, _MODE)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def kill(pid: int) -> None:
    """Kill the init *pid*, and so every process of its pod."""
    os.kill(pid, signal.SIGKILL)
