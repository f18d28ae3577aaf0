"""In which order processes are cloned, so that parents, sessions and groups come out right. Pure.

A process is born into the session of the process that clones it, and can leave it only by
setsid(2), for one of its own number. So each process is cloned from one that is, at that moment,
in the session it needs, and that is to be its parent, or whose end gives it to the pod's init.
Leaders of sessions and groups that have died are stood in for by temporary processes.

The seed is the first process: it belongs to nobody, its children are given to the pod's init.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from ckpt.model import Process

SEED: Final = 0
"""The maker's pid in a step where that is the seed; also the session and group from outside."""
INIT: Final = 1


class Clone(Struct, frozen=True):
    """*maker* clones process *pid*."""

    maker: int
    pid: int


class CloneOrphan(Struct, frozen=True):
    """*maker* clones a temporary process, which clones *pid* and ends: init is the parent."""

    maker: int
    pid: int


class NewSession(Struct, frozen=True):
    """*pid* calls setsid(2)."""

    pid: int


class JoinGroup(Struct, frozen=True):
    """*pid* calls setpgid(0, *group*)."""

    pid: int
    group: int


class End(Struct, frozen=True):
    """The temporary process *pid*, child of *maker*, or the seed, ends: its children are init's."""

    pid: int
    maker: int


Step = Clone | CloneOrphan | NewSession | JoinGroup | End


class Unbuildable(ValueError):  # noqa: N818 (a finding about the processes)
    """The processes cannot have come about; *pid* is the one that does not fit."""

    def __init__(self, pid: int, why: str) -> None:
        super().__init__(why)
        self.pid = pid


def plan(processes: Sequence[Process]) -> list[Step]:
    """Return the steps that make *processes* from the seed; it and all helpers end in them.

    Raises:
        Unbuildable: a process is in a session that neither it, nor its parent before it began its
            own, nor a session leader can have given it.
    """
    return _Planner(processes).steps()


class _Planner:
    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = {process.pid: process for process in processes}
        self._children: dict[int, list[Process]] = {}
        for process in processes:
            self._children.setdefault(process.parent, []).append(process)
        self._steps: list[Step] = []
        self._made: set[int] = set()
        self._stand_ins: dict[int, int] = {}  # and by whom they were made

    def steps(self) -> list[Step]:
        waiting = self._children.get(INIT, [])
        while waiting:
            ready = [root for root in waiting if self._has_maker(root)]
            if not ready:
                pid, session = waiting[0].pid, self._birth(waiting[0])
                raise Unbuildable(pid, f"the leader of its session, {session}, is below it")
            for root in ready:
                self._make_root(root)
            waiting = [root for root in waiting if root not in ready]
        for pid, process in self._processes.items():
            if pid not in self._made:
                raise Unbuildable(pid, f"its parent {process.parent} is not in the pod")
        self._join_groups()
        for pid, maker in [*reversed(self._stand_ins.items()), (SEED, SEED)]:
            self._steps.append(End(pid, maker))
        return self._steps

    def _has_maker(self, root: Process) -> bool:
        session = self._birth(root)
        return session not in self._processes or session in self._made

    def _make_root(self, root: Process) -> None:
        """Make a child of init, with all below it."""
        session = self._birth(root)
        if session in self._processes:
            self._steps.append(CloneOrphan(session, root.pid))
        else:
            if session not in {SEED, *self._stand_ins}:
                self._steps += [Clone(SEED, session), NewSession(session)]
                self._stand_ins[session] = SEED
            self._steps.append(Clone(session, root.pid))
        self._raise(root, session)

    def _raise(self, process: Process, session: int) -> None:
        """Make the children of a process that was just cloned into *session*."""
        self._made.add(process.pid)
        children = self._children.get(process.pid, [])
        early = [child for child in children if self._birth(child) == session]
        if process.session != session:
            if process.session != process.pid:
                raise Unbuildable(
                    process.pid, f"it cannot have come into session {process.session}"
                )
            for child in early:
                self._make_child(process, child, session)
            self._steps.append(NewSession(process.pid))
            children = [child for child in children if child not in early]
        for child in children:
            self._make_child(process, child, process.session)

    def _make_child(self, parent: Process, child: Process, session: int) -> None:
        if self._birth(child) not in {session, SEED}:
            raise Unbuildable(child.pid, f"its parent was never in session {child.session}")
        self._steps.append(Clone(parent.pid, child.pid))
        self._raise(child, session)

    def _birth(self, process: Process) -> int:
        """Return the session that a process must be born into; SEED if any will do."""
        if process.session != process.pid:
            return process.session
        for child in self._children.get(process.pid, []):
            birth = self._birth(child)
            if birth not in {SEED, process.pid}:
                return birth
        return SEED

    def _join_groups(self) -> None:
        """Put everybody into groups; dead leaders are stood in for.

        A living leader may itself have gone to another group meanwhile: it goes there last.
        """
        placed = [p for p in self._processes.values() if p.group not in {SEED, p.session}]
        leaders = [self._processes[g] for p in placed if (g := p.group) in self._processes]
        leaders = list({leader.pid: leader for leader in leaders}.values())
        for leader in leaders:
            self._steps.append(JoinGroup(leader.pid, leader.pid))
        for process in placed:
            if process.group not in {*self._processes, *self._stand_ins}:
                # From any process of the session: a temporary child of it.
                self._steps += [
                    Clone(process.pid, process.group),
                    JoinGroup(process.group, process.group),
                ]
                self._stand_ins[process.group] = process.pid
        followers = [process for process in placed if process not in leaders]
        for process in followers + [p for p in leaders if p.group != p.pid]:
            self._steps.append(JoinGroup(process.pid, process.group))


def used_pids(processes: Iterable[Process]) -> set[int]:
    """Return every number that a process, thread, group or session of the pod has."""
    used: set[int] = set()
    for process in processes:
        used |= {process.pid, process.group, process.session}
        used |= {thread.tid for thread in process.threads}
    return used
