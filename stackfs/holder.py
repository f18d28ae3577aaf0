"""The process that keeps a mount alive: it starts the daemon, and another one when that dies.

Holder and daemon share their table of file descriptors (CLONE_FILES): whatever the daemon has
open, /dev/fuse, files that programs have open, deleted ones too, stays open under the same number
when it is killed. The next daemon is a clone of the holder again, so that it needs nothing of the
disk, and finds in the journal what the numbers mean.

For another version of the program (`stackfs upgrade`) the holder starts that as a new holder,
which inherits the descriptors, and ends once its daemon answers; if that never does, a daemon of
the old program goes on. The holder has one thread, opens nothing while a daemon lives, and keeps
no file of the mount.
"""

import contextlib
import json
import logging
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from stackfs import abi, control, light, quiet
from stackfs.kept import Kept
from stackfs.stack import Stack

log = logging.getLogger(__name__)

PROGRAM: Final = [sys.executable, "-I", "-m", "stackfs.holder"]
"""The command line that begins a holder of this version."""

UPGRADE: Final = 75
"""Exit status of a daemon that is to be replaced by a new version (EX_TEMPFAIL)."""

MAX_FAILURES: Final = 5
"""So many daemons in a row may end before they answer."""

_UPGRADE_SECONDS: Final = 30


class Board:
    """A page that a holder shares with its daemons."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def served(self) -> bool:
        """Whether the daemon that was started last has begun to answer."""
        return self._page[0] != 0

    @served.setter
    def served(self, value: bool) -> None:
        self._page[0] = value

    @property
    def program(self) -> list[str]:
        """The command line of the new holder."""
        (size,) = struct.unpack_from("<I", self._page, 4)
        found: list[str] = json.loads(self._page[8 : 8 + size])
        return found

    @program.setter
    def program(self, argv: list[str]) -> None:
        text = json.dumps(argv).encode()
        self._page[8 : 8 + len(text)] = text
        struct.pack_into("<I", self._page, 4, len(text))


def hold(kept: Kept, stack: Stack | None, ready: Callable[[], None]) -> int:
    """Keep a daemon running until the mount has gone; return the last one's exit status.

    Args:
        kept: what it needs.
        stack: the open stack of the first daemon; None to take over from an earlier one.
        ready: called, in the first daemon, when it answers.
    """
    _spare()
    board = Board()
    failures = 0
    while True:
        board.served = False
        status = _run(kept, stack, board, ready)
        first, stack = stack is not None and not board.served, None
        if status == 0 or first:
            return status
        if board.served:
            kept.answered, failures = True, 0
            ready = _nothing
        elif status != -signal.SIGKILL:  # killed again is no fault of its own
            failures += 1
            time.sleep(0.1 * failures)
        log.warning("the daemon ended with status %d; starting another", status)
        if failures >= MAX_FAILURES:
            log.error("it does not start: the mount is lost")
            return 1
        if status == UPGRADE and _replace(kept, board.program):
            os._exit(0)  # nothing is to be cleaned up: all of it is the new holder's


def _spare() -> None:
    """Be a process that memory pressure spares, as its daemons will be."""
    try:
        Path("/proc/self/oom_score_adj").write_text("-1000")
    except PermissionError as e:  # it needs CAP_SYS_RESOURCE
        log.info("going on without protection from memory pressure: %s", e)


def _nothing() -> None:
    """Nobody waits for a later daemon."""


def _run(kept: Kept, stack: Stack | None, board: Board, ready: Callable[[], None]) -> int:
    """Run a daemon; return its exit status, or the negative number of the signal that ended it."""
    pid = abi.clone_files()
    if pid == 0:
        status = 1
        try:
            status = _serve(kept, stack, board, ready)
        finally:
            os._exit(status)
    earlier = {
        number: signal.signal(number, lambda number, _: os.kill(pid, number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _serve(kept: Kept, stack: Stack | None, board: Board, ready: Callable[[], None]) -> int:
    from stackfs.daemon import Daemon

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)

    # A holder that is given up takes its daemon along; a daemon that serves makes a new holder.
    abi.prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL)

    def answers() -> None:
        abi.prctl(abi.PR_SET_PDEATHSIG, signal.SIGHUP)
        board.served = True
        ready()
        kept.ready_fd = -1

    try:
        Daemon.over(kept, stack, board).serve(answers)
    except BaseException:
        log.exception("the daemon failed")
        return 1
    return 0


def _replace(kept: Kept, program: list[str]) -> bool:
    """Start a new holder, and tell whether its daemon answers; else it is ended."""
    answer, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(answer)
            kept.ready_fd = told
            become(kept, program)
        finally:
            os._exit(1)
    os.close(told)
    signal.alarm(_UPGRADE_SECONDS)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    with os.fdopen(answer, "rb") as reader:
        begun = reader.read() == b"ready"
    signal.alarm(0)
    if not begun:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        log.error("the new program does not start: going on with the old one")
    return begun


def become(kept: Kept, program: list[str]) -> NoReturn:
    """Become a holder: of a new version, or in the place of one that was killed."""
    kept.answered = True
    text = os.memfd_create("stackfs-kept")
    os.write(text, kept.to_json().encode())
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the list's own descriptor
            os.set_inheritable(fd, True)
    os.execv(program[0], [*program, kept.pod, str(text)])  # noqa: S606


def set_up_log() -> None:
    """Let messages go to standard error, which is the log of a daemon."""
    handler = logging.StreamHandler()
    handler.addFilter(quiet.Limit())
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(format=form, level="INFO", handlers=[handler])


def main() -> int:
    """Be a holder that takes over: `python -m stackfs.holder POD KEPT_FD`."""
    light.import_trio()  # heavy: before anything depends on it
    import stackfs.daemon  # noqa: F401

    set_up_log()
    text = int(sys.argv[2])
    kept = Kept.from_json(os.pread(text, os.fstat(text).st_size, 0).decode())
    os.close(text)

    def ready() -> None:
        if kept.ready_fd >= 0:
            os.write(kept.ready_fd, b"ready")
            os.close(kept.ready_fd)

    status = hold(kept, None, ready)
    if status == 0:
        control.clear(kept.run)
    return status


if __name__ == "__main__":
    sys.exit(main())
