from pathlib import Path

import pytest

from launcher import cgroups
from launcher.cgroups import Hierarchy
from launcher.config import Limits

V2_ONLY = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
42 31 0:38 / /mnt/again rw - cgroup2 cgroup2 rw
"""
HYBRID_OWN = """\
9:name=systemd:/user.slice/session-3.scope
4:memory:/user.slice
1:cpu,cpuacct:/
0::/user.slice/session-3.scope
"""
CONTAINER = "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"


def v1(path, *controllers):
    return Hierarchy(1, Path("/sys/fs/cgroup", path), frozenset(controllers))


@pytest.mark.parametrize(
    ("mountinfo", "own", "expected"),
    [
        (
            V2_ONLY,
            "0::/user.slice/session-3.scope\n",
            [Hierarchy(2, Path("/sys/fs/cgroup"), frozenset())],
        ),
        (
            HYBRID,
            HYBRID_OWN,
            [
                Hierarchy(2, Path("/sys/fs/cgroup/unified"), frozenset()),
                v1("cpu,cpuacct", "cpu", "cpuacct"),
                v1("memory/user.slice", "memory"),
                v1("systemd", "name=systemd"),
            ],
        ),
        (CONTAINER, "4:memory:/docker/1f/below\n", [v1("memory/below", "memory")]),
        (CONTAINER, "4:memory:/elsewhere\n", [v1("memory", "memory")]),
        ("", "", []),
    ],
)
def test_hierarchies(mountinfo, own, expected):
    assert cgroups.parse(mountinfo, own) == expected


def test_settings():
    limits = Limits(memory="64M", pids=20, cpus=0.5)

    assert cgroups.settings(limits, 2) == {
        "memory": [("memory.max", "67108864"), ("memory.swap.max?", "0")],
        "pids": [("pids.max", "20")],
        "cpu": [("cpu.max", "50000 100000")],
    }
    assert cgroups.settings(limits, 1) == {
        "memory": [
            ("memory.limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes?", "67108864"),
        ],
        "pids": [("pids.max", "20")],
        "cpu": [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")],
    }
    assert cgroups.settings(Limits(), 1) == {}
