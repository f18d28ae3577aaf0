from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckpt.model import Process
from ckpt.plan import (
    INIT,
    SEED,
    Clone,
    CloneOrphan,
    End,
    JoinGroup,
    NewSession,
    Unbuildable,
    plan,
    used_pids,
)


def process(pid, parent, session, group=None, status=None):
    group = session if group is None else group
    return Process(pid, parent, group, session, status, [], [], [])


@dataclass
class Task:
    parent: int
    session: int
    group: int
    zombie: bool = False


class Kernel:
    """Just enough of one: who is whose child, in which session and group."""

    def __init__(self, **tasks):
        self.tasks = dict(tasks)

    def clone(self, maker, pid):
        assert pid not in self.tasks
        assert not self.tasks[maker].zombie
        self.tasks[pid] = Task(maker, self.tasks[maker].session, self.tasks[maker].group)

    def setsid(self, pid):
        assert all(task.group != pid for task in self.tasks.values()), "EPERM"
        self.tasks[pid].session = self.tasks[pid].group = pid

    def setpgid(self, pid, group):
        task = self.tasks[pid]
        assert task.session != pid, "EPERM: a session leader"
        members = [t for t in self.tasks.values() if t.group == group]
        assert group == pid or any(t.session == task.session for t in members), "EPERM: no group"
        task.group = group

    def end(self, pid):
        for task in self.tasks.values():
            if task.parent == pid:
                task.parent = INIT
        del self.tasks[pid]


def build(steps):
    """Carry out *steps*; return the tasks that are left."""
    kernel = Kernel()
    kernel.tasks[SEED] = Task(-1, SEED, SEED)
    for step in steps:
        match step:
            case Clone(maker, pid):
                kernel.clone(maker, pid)
            case CloneOrphan(maker, pid):
                kernel.clone(maker, pid)
                kernel.tasks[pid].parent = INIT
            case NewSession(pid):
                kernel.setsid(pid)
            case JoinGroup(pid, group):
                kernel.setpgid(pid, group)
            case End(pid, maker):
                assert kernel.tasks[pid].parent in {maker, INIT, -1}
                kernel.end(pid)
    return kernel.tasks


def check(processes):
    expected = {p.pid: Task(p.parent, p.session, p.group) for p in processes}
    assert build(plan(processes)) == expected


def test_daemon():
    check([process(7, INIT, 5)])  # its session leader has ended


def test_shell_with_jobs():
    check(
        [
            process(3, INIT, 3),
            process(4, 3, 3, 4),
            process(5, 4, 3, 4),
            process(6, 3, 3, 2),  # the leader of its group has ended
        ]
    )


def test_child_from_before_the_session():
    check([process(3, INIT, 3), process(4, 3, 4), process(5, 4, 3)])


def test_orphan_of_a_living_session():
    check([process(9, INIT, 3), process(3, INIT, 3)])


def test_processes_of_an_outside_session():
    check([process(3, INIT, 0), process(4, 3, 0, 4), process(5, 4, 5)])


@pytest.mark.parametrize(
    "processes",
    [
        [process(3, INIT, 3), process(4, 3, 3), process(5, 4, 7)],
        [process(3, 8, 3)],
    ],
)
def test_impossible(processes):
    with pytest.raises(Unbuildable):
        plan(processes)


def test_used_pids():
    assert used_pids([process(5, INIT, 4, 3)]) == {3, 4, 5}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)), max_size=60))
def test_whatever_processes_did(history):
    """A tree that forks, sessions, groups and ends brought about is built again."""
    kernel = Kernel()
    kernel.tasks[INIT] = Task(0, INIT, INIT)
    kernel.clone(INIT, 2)
    kernel.setsid(2)
    fresh = iter(range(3, 99))
    for what, one, other in history:
        pids = [pid for pid in kernel.tasks if pid != INIT]
        if not pids:
            break
        pid = pids[one % len(pids)]
        try:
            match what:
                case 0 | 1:
                    kernel.clone(pid, next(fresh))
                case 2:
                    kernel.setsid(pid)
                case 3:
                    kernel.setpgid(pid, pids[other % len(pids)])
                case 4:
                    kernel.end(pid)
        except AssertionError:
            pass
    tasks = {pid: task for pid, task in kernel.tasks.items() if pid != INIT}
    assume(all(task.session != INIT for task in tasks.values()))
    check([process(pid, t.parent, t.session, t.group) for pid, t in tasks.items()])
