"""Where a process stands in the file tree: current directory, root, umask."""

import msgspec

from ckpt.kinds.stages import Stage, Subject, Target

STAGE = Stage.BUILD


class State(msgspec.Struct, frozen=True):
    """Directories are OpenFile.id; *umask* as in umask(2)."""

    cwd: int
    root: int
    umask: int


def collect(subject: Subject) -> State:
    """Look at /proc/PID/{cwd,root,status}."""
    umask = int(subject.process.status["Umask"], 8)
    return State(subject.file_id("cwd"), subject.file_id("root"), umask)


def rebuild(state: State, target: Target) -> None:
    """Change root, then directory: chroot(2) knows no descriptor, and leaves the directory."""
    remote = target.remote
    remote.syscall("fchdir", target.file(state.root))
    remote.syscall("chroot", b".\0")
    remote.syscall("fchdir", target.file(state.cwd))
    remote.syscall("umask", state.umask)
