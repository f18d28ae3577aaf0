"""Values of redirects, and the way back from a lower path."""

import pytest

from stackfs.layers.redirect import encode, is_valid, lift


@pytest.mark.parametrize("value", [b"a", b"/a", b"/a/b", b"\xff\n", b"/..a/...", b"n" * 255])
def test_well_formed(value):
    assert is_valid(value)


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"/", b".", b"..", b"/..", b"a/b", b"//a", b"/a/", b"/a//b", b"/a/./b", b"/a/../b"),
        *(b"a\0", b"n" * 256),
    ],
)
def test_malformed(value):
    assert not is_valid(value)


def test_encoded_paths_are_well_formed():
    assert encode((b"a", b"b c")) == b"/a/b c"
    assert is_valid(encode((b"a", b"b c")))


def test_the_longest_moved_directory_counts():
    moved = {(b"a",): (b"b",), (b"a", b"d"): (b"x", b"y")}
    assert lift(moved, (b"a", b"f")) == (b"b", b"f")
    assert lift(moved, (b"a", b"d", b"e", b"f")) == (b"x", b"y", b"e", b"f")
    assert lift(moved, (b"a",)) == (b"a",)  # a file has a directory above it
    assert lift(moved, (b"c", b"a")) == (b"c", b"a")
