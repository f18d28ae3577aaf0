"""The small pure parts: the barrier, inode numbers, mountinfo lines, specifications."""

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackfs import callers
from stackfs.barrier import may_pass
from stackfs.control import Refused
from stackfs.layers.numbers import FIRST_UPPER, ROOT, inode_number, next_number
from stackfs.mounting import Request, read_request
from stackfs.mounts import parse


def test_who_passes_the_barrier():
    assert may_pass("pid:[1]", "pid:[1]")
    assert not may_pass("pid:[2]", "pid:[1]")
    assert not may_pass(None, "pid:[1]")


def test_unknown_callers_have_no_namespace():
    own = callers.pid_namespace(os.getpid())
    assert own is not None
    assert own.startswith("pid:[")
    assert callers.pid_namespace(0) is None
    assert callers.pid_namespace(2**22 + 1) is None


@given(
    layer=st.integers(1, 16383),
    inode=st.integers(1, 2**64 - 1),
    device=st.none() | st.integers(1, 2**64 - 1),
)
def test_inode_numbers_are_node_ids(layer, inode, device):
    """Positive in 64 bits, and never the barrier's or the root's."""
    number = inode_number(layer, device, inode)
    assert ROOT < number < 2**63
    assert number == inode_number(layer, device, inode)
    assert ROOT < next_number(number) < 2**63
    if device is None and inode < 2**48:
        assert number == layer << 48 | inode


def test_layers_do_not_share_numbers():
    assert inode_number(1, None, 5) != inode_number(2, None, 5)
    assert inode_number(1, 9, 5) != inode_number(1, None, 5)
    assert inode_number(FIRST_UPPER, None, 2**48) != inode_number(FIRST_UPPER + 1, None, 0)


def test_mountinfo_lines():
    line = r"36 35 0:50 / /a\040b\011c rw,nosuid shared:7 master:2 - fuse.stackfs pod rw,user_id=0"
    mount = parse(line)
    assert (mount.device, mount.point, mount.fstype) == ("0:50", "/a b\tc", "fuse.stackfs")
    assert mount.propagates
    assert not parse("36 35 98:0 / / rw - ext4 /dev/sda rw").propagates


def test_specifications():
    assert read_request(io.StringIO('{"lower": ["/a"], "upper": null}')) == Request(("/a",), None)
    shifted = read_request(io.StringIO('{"lower": ["/a"], "shift": 65536}'))
    assert shifted == Request(("/a",), None, 65536)
    assert read_request(io.StringIO('{"lower": ["/a", "/b"], "upper": "/u"}')) == Request(
        ("/a", "/b"), "/u"
    )
    for text in ("", "[]", "{}", "null", '{"lower": "x"}', '{"lower": [1]}', "{"):
        with pytest.raises(Refused):
            read_request(io.StringIO(text))
