import pytest

from launcher import emulation
from launcher.emulation import EINVAL, EPERM, INODES, SIZE, Mount
from launcher.places import is_pod_name

BOUNDS = {"source": emulation.SOURCE, "size": str(SIZE), "nr_inodes": str(INODES)}


def options(text, kind=b"tmpfs", flags=0):
    result = emulation.of_mount(b"/mnt", kind, flags, text)
    return dict(result.options) if isinstance(result, Mount) else result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", {}),
        (b"size=4096", {"size": "4096"}),
        (b"size=1M,nr_inodes=2k", {"size": "1048576", "nr_inodes": "2048"}),
        (b"size=1g", {}),
        (b"size=50%", {}),
        (b"size=0,nr_inodes=0", {}),  # no limit, in tmpfs(5)
        (b"mode=0755,uid=0,gid=5", {"mode": "0755", "uid": "0", "gid": "5"}),
        (b",mode=1777,", {"mode": "1777"}),
    ],
)
def test_tmpfs_is_bounded(text, expected):
    assert options(text) == BOUNDS | expected


@pytest.mark.parametrize(
    "text",
    [b"size", b"size=", b"size=" + b"9" * 30, b"size=1t", b"size=-1", b"size=1 m",
     b"nr_blocks=5", b"mode=99999", b"uid=x", b"huge=always", b"mpol=local", b"source=x", b"\xff"],
)  # fmt: skip
def test_other_options_are_refused(text):
    assert options(text) == EINVAL


def test_proc_shows_processes_only():
    assert options(b"hidepid=2", b"proc") == {
        "source": emulation.SOURCE,
        "hidepid": "2",
        "subset": "pid",
    }
    assert options(b"subset=pid", b"proc") == {"source": emulation.SOURCE, "subset": "pid"}
    assert options(b"subset=all", b"proc") == EINVAL
    assert options(b"size=1m", b"proc") == EINVAL


@pytest.mark.parametrize("kind", [b"ext4", b"sysfs", b"Tmpfs", b"tmpfs ", b"", b"\xff"])
def test_other_types_are_refused(kind):
    assert options(b"", kind) == EPERM


@pytest.mark.parametrize(
    ("kind", "flags", "attributes"),
    [
        (b"tmpfs", 0, 0x6),
        (b"tmpfs", 0x1 | 0x8 | 0x8000 | 0x200000, 0xF),
        (b"tmpfs", 0x400 | 0x800, 0x96),
        (b"tmpfs", 0x1000000, 0x26),
        (b"proc", 0, 0xE),
        (b"proc", 0x1, 0xF),
    ],
)
def test_attributes_are_forced(kind, flags, attributes):
    assert emulation.of_mount(b"/mnt", kind, flags, b"").attributes == attributes


def test_contradicting_flags():
    assert options(b"", flags=0x400 | 0x1000000) == EINVAL


def test_a_mount_of_a_program_is_not_taken_for_a_root():
    """The source of a pod's root is the pod's name, whatever that is."""
    assert not is_pod_name(emulation.SOURCE)
