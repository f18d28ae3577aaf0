import os

import pytest

from ckpt import procfs

SMAPS = b"""\
00400000-00401000 r--p 00001000 08:02 173521      /usr/bin/a b (deleted)
Size:                  4 kB
VmFlags: rd mr mw me dw sd
7f1bed088000-7f1bed08c000 rw-s 00000000 00:01 7 /dev/zero (deleted)
VmFlags: rd wr sh mr mw me ms
7f1bed08c000-7f1bed08e000 ---p 00000000 00:00 0
VmFlags: mr mw me
"""


def test_smaps():
    first, second, third = procfs.parse_smaps(SMAPS)
    assert (first.start, first.end, first.mode, first.offset) == (0x400000, 0x401000, "r--p", 4096)
    assert (first.device, first.inode, first.name) == ("08:02", 173521, b"/usr/bin/a b (deleted)")
    assert first.flags == {"rd", "mr", "mw", "me", "dw", "sd"}
    assert first.link == "400000-401000"
    assert not first.shared
    assert second.shared
    assert (third.inode, third.name, third.flags) == (0, b"", {"mr", "mw", "me"})


def test_maps():
    text = b"".join(line for line in SMAPS.splitlines(keepends=True) if b"-" in line)
    smaps = procfs.parse_smaps(SMAPS)
    for one in smaps:
        one.flags = frozenset()
    assert procfs.parse_maps(text) == smaps
    assert procfs.parse_smaps(b"") == procfs.parse_maps(b"") == []
    with pytest.raises(ValueError, match="not a line"):
        procfs.parse_maps(b"what is that?\n")


def test_stat_with_a_nasty_name():
    stat = procfs.parse_stat("42 (a) b) S) R 1 42 41 0\n")
    assert stat[1:6] == ["42", "a) b) S", "R", "1", "42"]


def test_status():
    status = procfs.parse_status("Name:\tx:y\nNSpid:\t700\t9\t3\n")
    assert status["Name"] == "x:y"
    assert procfs.inner_pid(status) == 3


def test_timers():
    text = """\
ID: 3
signal: 35/0000000000000029
notify: signal/pid.77
ClockID: 1
ID: 5
signal: 36/ffff
notify: signal/tid.78
ClockID: 7
"""
    assert procfs.parse_timers(text) == [
        procfs.Timer(3, 35, 0x29, "signal", None, 1),
        procfs.Timer(5, 36, 0xFFFF, "signal", 78, 7),
    ]
    assert procfs.parse_timers("") == []


def test_limits():
    text = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 524288               files
Max nice priority         0                    0
"""
    assert procfs.parse_limits(text) == {
        "cpu": (None, None),
        "nofile": (1024, 524288),
        "nice": (0, 0),
    }


def test_own_files():
    """The kernel of this machine writes what the parsers know."""
    assert len(procfs.parse_limits(procfs.read(os.getpid(), "limits"))) == 16
    assert any(
        m.name == b"[stack]" for m in procfs.parse_smaps(procfs.read_bytes(os.getpid(), "smaps"))
    )
