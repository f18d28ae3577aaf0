import os

import msgspec
import pytest

from ckpt.kinds import locks, procinfo
from ckpt.kinds.epoll import _ENTRY
from ckpt.kinds.inotify import _WATCH
from ckpt.kinds.protocol import Mount

INOTIFY = """pos:\t0
flags:\t04000
mnt_id:\t17
ino:\t1038
inotify wd:2 ino:7b sdev:2b mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7b000000a1b2c3d4
inotify wd:1f ino:9 sdev:800001 mask:4000002 ignored_mask:0 
"""  # noqa: E501, W291


def test_fdinfo():
    head = procinfo.parse_fdinfo(b"pos:\t12\nflags:\t02100002\nmnt_id:\t4\nino:\t9\nmore:\t1\n")
    assert head == procinfo.FdInfo(12, 0o100002, True, 4, 9)


def test_fdinfo_of_an_old_kernel():
    assert procinfo.parse_fdinfo(b"pos:\t0\nflags:\t00\nmnt_id:\t4\n").inode == 0


def test_fdinfo_of_unknown_form():
    with pytest.raises(ValueError, match="unknown form"):
        procinfo.parse_fdinfo(b"position: 1\n")


def test_mounts():
    text = (
        b"36 35 0:45 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=1k\n"
        b"37 35 8:1 /sub /with\\040space ro,relatime shared:1 master:2 - ext4 /dev/sda1 rw\n"
    )
    assert list(procinfo.parse_mounts(text)) == [
        Mount(
            36,
            os.makedev(0, 45),
            b"/dev/shm",
            "tmpfs",
            True,
            False,
            35,
            "tmpfs",
            "rw,nosuid",
            "rw,size=1k",
        ),
        Mount(
            37,
            os.makedev(8, 1),
            b"/with space",
            "ext4",
            False,
            True,
            35,
            "/dev/sda1",
            "ro,relatime",
            "rw",
        ),
    ]


def test_ids_of_a_process_in_a_pod():
    text = (
        b"Name:\tNSpid:\nPid:\t900\nNStgid:\t900\t7\nNSpid:\t901\t8\nNSpgid:\t0\t0\nNSsid:\t5\t5\n"
    )
    assert dict(procinfo.parse_ids(text)) == {900: 7, 901: 8, 0: 0, 5: 5}


def test_terminal_of_a_process_with_a_trying_name():
    stat = b"12 (a) b (c) S 1 12 12 34817 99 4194304 0"
    assert procinfo.parse_terminal(stat) == (12, 34817, 99)


@pytest.mark.parametrize(
    ("line", "kind", "found"),
    [
        ("1: POSIX  ADVISORY  WRITE 1234 fd:01:5678 5 14", "POSIX", locks.Range("WRITE", 5, 10)),
        ("2: FLOCK  ADVISORY  READ -1 00:2e:9 0 EOF", "FLOCK", locks.Range("READ", 0, 0)),
        ("3: OFDLCK ADVISORY  READ -1 00:2e:9 7 EOF", "OFDLCK", locks.Range("READ", 7, 0)),
        ("4: LEASE  ACTIVE    READ 77 00:2e:9 0 EOF", "LEASE", locks.Range("READ", 0, 0)),
    ],
)
def test_locks(line, kind, found):
    text = f"pos:\t0\nflags:\t00\nmnt_id:\t4\nlock:\t{line}\n"
    assert [(lock.kind, lock.range) for lock in locks._locks(text)] == [(kind, found)]


def test_epoll_entries():
    text = "tfd:        5 events: 80000019 data: ffffffffffffffff  pos:-1 ino:40e sdev:10\n"
    assert _ENTRY.findall(text) == [("5", "80000019", "ffffffffffffffff", "40e")]


def test_watches():
    assert _WATCH.findall(INOTIFY) == [
        ("2", "7b", "2b", "100", "1", "7b000000a1b2c3d4"),
        ("1f", "9", "800001", "4000002", "", ""),
    ]


def test_multicast_groups():
    igmp = (
        b"Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"
        b"1\tlo        :     2      V3\n"
        b"\t\t\t\tFB0000E0     1 0:00000000\t\t0\n"
        b"\t\t\t\t010000E0     1 0:00000000\t\t0\n"
    )
    igmp6 = (
        b"1    lo              ff020000000000000000000000000001     1 0000000C 0\n"
        b"1    lo              ff0200000000000000000001ff000001     1 00000004 0\n"
        b"1    lo              ff0200000000000000000000000000fb     1 00000004 0\n"
    )
    assert [*map(msgspec.structs.astuple, procinfo.parse_groups(igmp, igmp6))] == [
        (1, "lo", "224.0.0.251"),
        (1, "lo", "224.0.0.1"),
        (1, "lo", "ff02::1"),
        (1, "lo", "ff02::fb"),
    ]
    assert procinfo.parse_groups(b"", b"") == []


TCP = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0A07620A:0FA0 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 17 1 0
   1: 0A07620A:0FA0 0107620A:9C40 01 00000000:00000005 00:00000000 00000000     0        0 18 1 0
   2: 0A07620A:0FA0 0107620A:9C41 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0
   3: 0A07620A:0FA0 0107620A:9C42 08 00000000:00000000 00:00000000 00000000     0        0 0 1 0
   4: 0A07620A:0FA0 0107620A:9C43 04 00000001:00000000 01:00000014 00000000     0        0 0 3 0
   5: 0A07620A:0FA0 0107620A:9C44 05 00000000:00000000 00:00000000 00000000     0        0 0 3 0
   6: 0A07620A:0FA0 0107620A:9C45 06 00000000:00000000 03:00000CE4 00000000     0        0 0 3 0
"""


def test_tcp_connections_that_no_process_has():
    assert procinfo.parse_tcp_unowned(TCP) == (2, 1)
    assert procinfo.parse_tcp_unowned(TCP.splitlines()[0]) == (0, 0)


def test_tcp_sockets_in_use():
    sockstat = b"sockets: used 14\nTCP: inuse 3 orphan 0 tw 5 alloc 9 mem 7\nUDP: inuse 8 mem 0\n"
    assert procinfo.parse_tcp_in_use(sockstat) == 3
    assert procinfo.parse_tcp_in_use(b"TCP6: inuse 2\nUDP6: inuse 1\n") == 2


def test_the_peer_of_a_tcp_socket():
    assert procinfo.parse_peer(TCP, 18) == ("10.98.7.1", 40000)
    assert procinfo.parse_peer(TCP, 19) is None
    six = b"head\n 0: 0:1 000080FE00000000FF005450DDCCBBAA:0050 02 0:0 0:0 0 0 0 19 1\n"
    assert procinfo.parse_peer(six, 19) == ("fe80::5054:ff:aabb:ccdd", 80)
