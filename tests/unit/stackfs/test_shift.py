"""Which ids the kernel is told, and which it means."""

import contextlib
import errno
import struct

import pytest

from stackfs.shift import COUNT, MOST, Shift

BASE = 1 << 20
SHIFT = Shift(BASE)
NONE = 0xFFFFFFFF


@contextlib.contextmanager
def raises(number):
    with pytest.raises(OSError, match="id ") as raised:
        yield
    assert raised.value.errno == number


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_ids_of_the_namespace_go_there_and_back():
    for number in (0, 1, 33, 65534, COUNT - 1):
        assert SHIFT.outside(number) == BASE + number
        assert SHIFT.inside(BASE + number) == number
    assert Shift(MOST).outside(COUNT - 1) == NONE - 1


def test_ids_beyond_it_are_nobody_s():
    assert SHIFT.outside(COUNT) == SHIFT.outside(1000000) == NONE
    for number in (0, 33, BASE - 1, BASE + COUNT, NONE):
        with raises(errno.EOVERFLOW):
            SHIFT.inside(number)


def test_what_the_host_s_root_makes_is_the_pod_s_root_s():
    assert SHIFT.maker(0) == SHIFT.maker(BASE) == 0
    assert SHIFT.maker(BASE + 33) == 33
    with raises(errno.EOVERFLOW):
        SHIFT.maker(33)


def test_only_named_entries_of_an_acl_have_ids():
    disk = acl((1, 7, NONE), (2, 6, 33), (4, 5, NONE), (8, 4, 12), (16, 7, NONE), (32, 0, NONE))
    kernel = acl(
        (1, 7, NONE), (2, 6, BASE + 33), (4, 5, NONE), (8, 4, BASE + 12), (16, 7, NONE),
        (32, 0, NONE),
    )  # fmt: skip
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        assert SHIFT.value_outside(name, disk) == kernel
        assert SHIFT.value_inside(name, kernel) == disk


def test_an_acl_with_somebody_else_s_id():
    name = "system.posix_acl_access"
    assert SHIFT.value_outside(name, acl((2, 6, COUNT))) == acl((2, 6, 65534))
    with raises(errno.EINVAL):
        SHIFT.value_inside(name, acl((2, 6, 33)))


def test_what_is_no_acl_stays():
    for value in (b"", b"\2\0\0\0x", acl((2, 6, 33))[:-1], b"\3\0\0\0" + b"x" * 8):
        assert SHIFT.value_outside("system.posix_acl_access", value) == value
        assert SHIFT.value_inside("system.posix_acl_access", value) == value
    assert SHIFT.value_outside("user.acl", acl((2, 6, 33))) == acl((2, 6, 33))


def test_capabilities_of_a_file_are_those_of_the_pod_s_root():
    name, sets = "security.capability", bytes(range(16))
    effective = 1
    second = struct.pack("<I", 0x02000000 | effective) + sets
    third = struct.pack("<I", 0x03000000 | effective) + sets
    assert SHIFT.value_outside(name, second) == third + struct.pack("<I", BASE)
    assert SHIFT.value_inside(name, third + struct.pack("<I", BASE)) == second
    assert SHIFT.value_outside(name, third + struct.pack("<I", 7)) == third + struct.pack(
        "<I", BASE + 7
    )
    assert SHIFT.value_inside(name, third + struct.pack("<I", BASE + 7)) == third + struct.pack(
        "<I", 7
    )
    assert SHIFT.value_outside(name, third + struct.pack("<I", COUNT)) == third + b"\xff" * 4
    with raises(errno.EINVAL):
        SHIFT.value_inside(name, third + struct.pack("<I", 7))
    for value in (b"", b"\2\0\0", b"x" * 12, second[:-1]):
        assert SHIFT.value_outside(name, value) == value
        assert SHIFT.value_inside(name, value) == value
