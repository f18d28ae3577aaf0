"""What of a pod's processes cannot be carried over, from /proc alone: nothing is stopped.

A finding names the process, the object and the reason. The open files have their own check in
ckpt/openfiles.py; some findings need a stopped process and come with the collection.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ckpt import abi, plan, procfs
from ckpt.arch import x86_64 as arch
from ckpt.kinds import memory, mounts, procinfo, sharing
from ckpt.kinds.abi import pidfd_open
from ckpt.lineage import Lineage, lineages
from ckpt.model import Process, Refusal

_NAMESPACES: Final = ("mnt", "net", "ipc", "uts", "user", "cgroup", "time")
_KCMP_VM, _KCMP_FILES, _KCMP_FS = 1, 2, 3
_ELF_CLASS_64: Final = 2
_ATTEMPTS, _PAUSE_S = 20, 0.01


def check_processes(init_host_pid: int, host_pids: list[int]) -> list[Refusal]:
    """Return what stands against a checkpoint of the processes *host_pids*.

    A process that ends meanwhile is passed over.
    """
    spaces = {name: _namespace(init_host_pid, name) for name in _NAMESPACES}
    found = [Refusal(1, "init", *finding) for finding in _check_mounts(init_host_pid)]
    layouts: dict[tuple[str, ...], int] = {}
    seen: dict[int, dict[str, str]] = {}
    for pid in host_pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            seen[pid] = status = procfs.parse_status(procfs.read(pid, "status"))
            inner, command = procfs.inner_pid(status), status["Name"]
            view = procfs.view(pid)
            if view is not None:
                findings = _check_living(pid, view, host_pids, spaces)
                found += [Refusal(inner, command, *finding) for finding in findings]
                stat = procfs.parse_stat(procfs.read(view, "stat"))
                twin = layouts.setdefault(tuple(stat[26:29] + stat[45:52]), view)
                if twin != view and _share_memory(twin, view):
                    found.append(
                        Refusal(
                            inner,
                            command,
                            "its memory",
                            f"it is shared with host process {twin}, and they are not threads",
                        )
                    )
    family = lineages(seen)
    commands = {family[pid].pid: status["Name"] for pid, status in seen.items()}
    return found + _check_tree(family, commands) + _check_sharing(family, commands)


Finding = tuple[str, str, str]
"""What, why, hint."""


def _check_living(
    pid: int, view: int, host_pids: list[int], spaces: dict[str, int]
) -> Iterator[Finding]:
    """Check a process by its thread *view*, the first that lives."""
    if not shows_files(view):
        why = "it has ended while others of the process go on, and this kernel does not show those"
        yield "its first thread", why, "Linux 6.9 or later does"
    tracer = int(procfs.parse_status(procfs.read(view, "status"))["TracerPid"])
    if tracer:
        yield "the process", f"host process {tracer} traces it (ptrace(2))", "end the debugger"
    for name, space in spaces.items():
        if _namespace(view, name) != space:
            yield f"its {name} namespace", "it is not the pod's own", ""
    if _elf_class(view) != _ELF_CLASS_64:
        yield "its program", "it is not a 64-bit one", ""
    for tid in procfs.threads(pid):
        if not procfs.is_dead(tid):
            yield from _check_thread(view, tid, host_pids)
    mappings = procfs.parse_smaps(procfs.read_bytes(view, "smaps"))
    for what, why in memory.refusals(mappings):
        yield what, why, ""


def shows_files(view: int) -> bool:
    """Can the open files be had of a process of which *view* is the first thread that lives?

    Raises:
        OSError: it is gone.
    """
    try:
        os.close(pidfd_open(view))
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return False
    return True


def _check_thread(pid: int, tid: int, host_pids: list[int]) -> Iterator[Finding]:
    for child in procfs.read(pid, f"task/{tid}/children").split():
        if int(child) not in host_pids and _is_elsewhere(pid, int(child)):
            yield f"its child, host process {child}", "it is in a pid namespace of its own", ""
    if tid != pid:
        if not _same(pid, tid, _KCMP_FILES):
            yield f"host thread {tid}", "it has open files of its own (CLONE_FILES)", ""
        if not _same(pid, tid, _KCMP_FS):
            yield f"host thread {tid}", "it has a directory of its own (CLONE_FS)", ""


def _check_tree(family: dict[int, Lineage], commands: dict[int, str]) -> list[Refusal]:
    """Can the processes be cloned so that parents and sessions come out right?"""
    processes = [
        Process(
            pid=one.pid,
            parent=one.parent,
            group=one.group,
            session=one.session,
            exit_status=None,
            descriptors=[],
            threads=[],
            parts=[],
        )
        for one in family.values()
    ]
    try:
        plan.plan(processes)
    except plan.Unbuildable as e:
        return [Refusal(e.pid, commands[e.pid], "its session", str(e))]
    return []


def _check_sharing(family: dict[int, Lineage], commands: dict[int, str]) -> list[Refusal]:
    """Can the processes be cloned so that they share what they do?"""
    members = [
        sharing.Member(one.pid, one.parent, view)
        for pid, one in family.items()
        if (view := procfs.view(pid)) is not None
    ]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        _, refused = sharing.find(members)
        return [Refusal(pid, commands[pid], what, sharing.WHY) for pid, what in refused.items()]
    return []


def _check_mounts(init_host_pid: int) -> Iterator[Finding]:
    """Look for what the pod's programs have mounted upon each other, or not by its monitor.

    Source: ckpt.kinds.mounts, launcher.plan.
    """
    found = [*procinfo.parse_mounts(procfs.read_bytes(init_host_pid, "mountinfo"))]
    points = {mount.id: mount.point for mount in found}
    for mount in found:
        point = os.fsdecode(mount.point)
        what, hint = f"the {mount.fstype} that is mounted on {point}", f"umount {point}, in the pod"
        if mounts.is_foreign(mount):
            yield what, "a program has mounted it with privileges that no profile gives", hint
        elif mounts.is_own(mount) and points.get(mount.parent) != b"/":
            yield what, "it is mounted upon another mount", hint


def _is_elsewhere(pid: int, child: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return _namespace(pid, "pid") != _namespace(child, "pid")
    return False


def _namespace(pid: int, name: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{name}").st_ino


def _elf_class(pid: int) -> int:
    with Path(f"/proc/{pid}/exe").open("rb") as file:
        return file.read(5)[4]


def _share_memory(one: int, other: int) -> bool:
    """Do two processes share their memory for longer than vfork(2) does?"""
    for _ in range(_ATTEMPTS):
        if not _same(one, other, _KCMP_VM):
            return False
        time.sleep(_PAUSE_S)
    return True


def _same(one: int, other: int, resource: int) -> bool:
    """Do two tasks share a resource? kcmp(2)."""
    return abi.syscall("kcmp", arch.SYSCALLS["kcmp"], one, other, resource, 0, 0) == 0
