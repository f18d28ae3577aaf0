from pathlib import Path

from launcher import plan as planning
from launcher.config import PodConfig
from launcher.plan import (
    BindReadOnly,
    FileSystem,
    JoinControlGroups,
    JoinNetwork,
    Mask,
    NewNamespaces,
    Pivot,
    ReadOnly,
    SetClocks,
    SetHostName,
    TakeRoot,
)

ROOT, NET = Path("/autopod/mail/root"), Path("/run/autopod/mail/net")


def plan(**more):
    return planning.plan(PodConfig(name="mail"), ROOT, NET, **more)


def test_order():
    """What a step needs stands before it."""
    steps = plan().outside

    assert steps[:4] == (
        JoinNetwork("/run/autopod/mail/net"),
        NewNamespaces(("uts", "ipc", "mnt", "time", "pid")),
        SetHostName("mail"),
        TakeRoot("/autopod/mail/root"),
    )
    assert steps[-1] == Pivot()
    inside = plan().inside
    assert inside[0] == JoinControlGroups()
    assert inside[1] == NewNamespaces(("cgroup",)), "after joining: it is rooted where we are"


def test_clocks_are_set_before_anybody_lives_by_them():
    steps = plan(clocks=(5, -7)).outside

    assert steps.index(SetClocks(5, -7)) > steps.index(
        NewNamespaces(("uts", "ipc", "mnt", "time", "pid"))
    )
    assert not any(isinstance(step, SetClocks) for step in plan().outside)


def test_every_target_is_mounted_after_its_parent():
    every = plan()
    targets = [
        step.target
        for step in (*every.outside, *every.inside)
        if isinstance(step, FileSystem | BindReadOnly | ReadOnly | Mask)
    ]

    for parent in ("/dev", "/sys", "/proc"):
        first = targets.index(parent)
        assert not any(target.startswith(f"{parent}/") for target in targets[:first])
    assert len(set(targets)) == len(targets)


def test_only_the_pods_own_processes_mount_proc():
    assert not any(isinstance(s, FileSystem) and s.fstype == "proc" for s in plan().outside)


def test_devices_cannot_be_made_elsewhere():
    """Only /dev holds devices, and no new file system lets a program gain privileges."""
    mounts = [s for s in (*plan().outside, *plan().inside) if isinstance(s, FileSystem)]

    assert [m.target for m in mounts if "nodev" not in m.attributes] == ["/dev", "/dev/pts"]
    assert all({"nosuid", "noexec"} <= set(m.attributes) for m in mounts)


def test_description_is_a_line_for_each_step():
    lines = plan(clocks=(1, 2)).describe()

    assert "set clocks: monotonic +1 ns, boottime +2 ns" in lines
    assert "mask /proc/kcore" in lines
    assert "mount proc on /proc (nosuid,nodev,noexec)" in lines
    assert len(lines) == len(plan(clocks=(1, 2)).outside) + len(plan().inside)
    assert not any("\n" in line for line in lines)
