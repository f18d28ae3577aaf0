"""What the files of control groups say."""

from pathlib import Path

from launcher.usage import average, counter, victim


def test_counter():
    assert counter("low 0\noom 2\noom_kill 1\n", "oom_kill") == 1
    assert counter("oom_kill_disable 0\nunder_oom 0\n", "oom_kill") is None


def test_average():
    text = "some avg10=12.50 avg60=1.00 avg300=0.00 total=99\nfull avg10=3.00 avg60=0 total=1\n"

    assert average(text) == 12.5
    assert average("") is None


def test_victim():
    def line(group, task, pid):
        return (
            "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
            f"oom_memcg={group},task_memcg={group},task={task},pid={pid},uid=0\n"
        )

    log = [line("/autopod/a.1", "one", 1), line("/own/autopod/a.1", "t,pid=7", 2)]
    other = line("/autopod/b.1", "other", 3)

    assert victim([*log, other, "4,1,1,-;else"], [Path("/sys/fs/cgroup/autopod/a.1")]) == (
        "t,pid=7 (2)"
    )
    assert victim([other], [Path("/sys/fs/cgroup/autopod/a.1")]) is None
