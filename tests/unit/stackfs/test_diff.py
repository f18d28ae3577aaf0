"""What layers change of those below."""

import os

from stackfs.layers import whiteout
from stackfs.layers.diff import changes
from stackfs.layers.layer import DIRECTORY
from stackfs.layers.work import remove


def layer(tmp_path, name, *paths):
    """A layer with files, directories (a/) and whiteouts (!a)."""
    top = tmp_path / name
    top.mkdir()
    for path in paths:
        at = top / path.lstrip("!")
        if path.endswith("/"):
            at.mkdir(parents=True, exist_ok=True)
            continue
        at.parent.mkdir(parents=True, exist_ok=True)
        if path.startswith("!"):
            os.mknod(at, 0o20000, 0)
        else:
            at.write_text(path)
    return top


def compared(written, lowers):
    fds = [[os.open(path, DIRECTORY) for path in paths] for paths in (written, lowers)]
    try:
        return [f"{one.kind} {os.fsdecode(one.path)}" for one in changes(*fds)]
    finally:
        for fd in (*fds[0], *fds[1]):
            os.close(fd)


def test_layers_between(tmp_path):
    """Only what shows counts: a file that came and went, and one that was deleted twice."""
    upper = layer(tmp_path, "upper", "!passing", "!gone", "d/new", "again")
    sealed = layer(tmp_path, "sealed", "passing", "!gone", "d/", "!again", "!d/x", "o/only")
    lower = layer(tmp_path, "lower", "gone", "d/x", "d/y", "again", "o/hidden")
    os.setxattr(sealed / "o", whiteout.OPAQUE, b"y")
    expected = ["C /again", "C /d", "A /d/new", "D /d/x", "D /gone", "C /o", "D /o/hidden"]
    assert compared([upper, sealed], [lower]) == [*expected, "A /o/only"]
    assert compared([upper], [sealed, lower]) == [
        *("A /again", "C /d", "A /d/new", "D /passing"),
    ]
    assert compared([], [upper, sealed, lower]) == []


def test_a_tree_deeper_than_the_interpreter_recurses(tmp_path):
    depth = 1500
    upper = tmp_path / "upper"
    upper.mkdir()
    fd = os.open(upper, DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    lower = layer(tmp_path, "lower", "d/file")
    try:
        found = compared([upper], [lower])
    finally:
        fd = os.open(tmp_path, DIRECTORY)
        remove(fd, b"upper")
        os.close(fd)
    assert len(found) == depth
    assert found[0] == "C /d"
    assert found[-1] == "A " + "/d" * depth
