"""Directories of lower layers move without the files in them."""

import json
import os
import shutil
import subprocess

import pytest

from stackfs import abi
from stackfs.layers import whiteout

pytestmark = pytest.mark.needs("root", "fuse")


def fill(lower):
    for path in ("a/d/f", "a/x", "other/f"):
        (lower / path).parent.mkdir(parents=True, exist_ok=True)
        (lower / path).write_text(path)


def tree(top):
    """Paths of files, with what is in them; of empty directories, None."""
    found = {}
    for directory, names, files in os.walk(top):
        at = os.path.relpath(directory, top)
        found.update({os.path.normpath(f"{at}/{name}"): _read(directory, name) for name in files})
        if not names and not files:
            found[at] = None
    return found


def _read(directory, name):
    with open(os.path.join(directory, name)) as file:
        return file.read()


def again(host):
    host.kill_all()
    host.stackfs("mount", "pod")


def regular_files(top):
    return sorted(path.name for path in top.rglob("*") if path.is_file())


def exchange(one, two):
    abi.renameat2(-100, os.fsencode(one), -100, os.fsencode(two), abi.RENAME_EXCHANGE)


def both_ways(host, expected):
    """What is seen now is seen by a new daemon, too, and by the next after a snapshot."""
    assert tree(host.root()) == expected
    again(host)
    assert tree(host.root()) == expected
    host.request("snapshot")
    assert tree(host.root()) == expected
    again(host)
    assert tree(host.root()) == expected


def test_nothing_is_copied_and_numbers_stay(host):
    fill(host.lower)
    root = host.mount()
    numbers = [os.stat(root / path).st_ino for path in ("a", "a/d", "a/d/f")]
    os.rename(root / "a", root / "b")
    assert regular_files(host.state() / "upper") == []
    both_ways(host, {"b/d/f": "a/d/f", "b/x": "a/x", "other/f": "other/f"})
    assert [os.stat(root / path).st_ino for path in ("b", "b/d", "b/d/f")] == numbers
    (root / "b/d/f").write_text("changed")
    (root / "b/new").write_text("new")
    os.unlink(root / "b/x")
    both_ways(host, {"b/d/f": "changed", "b/new": "new", "other/f": "other/f"})


def test_twice_and_back(host):
    fill(host.lower)
    root = host.mount()
    os.rename(root / "a", root / "b")
    os.rename(root / "b", root / "other/c")
    both_ways(host, {"other/c/d/f": "a/d/f", "other/c/x": "a/x", "other/f": "other/f"})
    os.rename(root / "other/c", root / "a")
    both_ways(host, {"a/d/f": "a/d/f", "a/x": "a/x", "other/f": "other/f"})


def test_a_child_leaves_a_moved_directory(host):
    fill(host.lower)
    root = host.mount()
    os.rename(root / "a", root / "b")
    os.rename(root / "b/d", root / "e")
    both_ways(host, {"e/f": "a/d/f", "b/x": "a/x", "other/f": "other/f"})
    os.rename(root / "e", root / "b/x2")
    both_ways(host, {"b/x2/f": "a/d/f", "b/x": "a/x", "other/f": "other/f"})


def test_moved_again_after_each_snapshot(host):
    """Each layer says where the next one below has it."""
    fill(host.lower)
    root = host.mount()
    for number in range(5):
        os.rename(root / ("a" if number == 0 else f"a{number}"), root / f"a{number + 1}")
        (root / f"a{number + 1}/d/{number}").write_text("")
        if number == 2:
            os.rename(root / "a3/d", root / "a3/moved")
            os.mkdir(root / "a3/d")
        host.request("snapshot")
    expected = {"a5/moved/f": "a/d/f", "a5/x": "a/x", "other/f": "other/f"}
    expected.update({f"a5/moved/{number}": "" for number in range(3)})
    expected.update({f"a5/d/{number}": "" for number in range(3, 5)})
    both_ways(host, expected)
    host.stackfs("flatten", "pod")
    both_ways(host, expected)
    assert regular_files(host.state() / "layers") == list("01234")
    os.rename(root / "a5", root / "a")
    again(host)
    assert (root / "a/moved/f").read_text() == "a/d/f"


def test_a_new_directory_at_the_old_place(host):
    """Nothing of the old one shows in it; nor in what comes where a moved one was removed."""
    fill(host.lower)
    root = host.mount()
    os.rename(root / "a", root / "b")
    os.mkdir(root / "a")
    os.mkdir(root / "a/d")
    (root / "a/d/own").write_text("own")
    expected = {"b/d/f": "a/d/f", "b/x": "a/x", "a/d/own": "own", "other/f": "other/f"}
    both_ways(host, expected)
    shutil.rmtree(root / "b")
    os.mkdir(root / "b")
    both_ways(host, {"b": None, "a/d/own": "own", "other/f": "other/f"})


def test_over_an_empty_merged_directory(host):
    fill(host.lower)
    root = host.mount()
    os.unlink(root / "other/f")
    os.rename(root / "a/d", root / "other")
    both_ways(host, {"other/f": "a/d/f", "a/x": "a/x"})


@pytest.mark.parametrize("sealed", [False, True])
def test_exchanged(host, sealed):
    fill(host.lower)
    root = host.mount()
    exchange(root / "a", root / "other")
    if sealed:
        host.request("snapshot")
    exchange(root / "a", root / "other/d")
    both_ways(host, {"a/f": "a/d/f", "other/d/f": "other/f", "other/x": "a/x"})


def test_hard_links_are_found_in_moved_directories(host):
    """All names of a file come up together, wherever they are seen; after a snapshot, too."""
    fill(host.lower)
    os.link(host.lower / "a/d/f", host.lower / "other/linked")
    os.link(host.lower / "a/x", host.lower / "other/x")
    root = host.mount()
    os.rename(root / "a", root / "b")
    os.rename(root / "b/d", root / "d")
    host.request("snapshot")
    os.rename(root / "d", root / "other/dd")
    again(host)
    os.rename(root / "other", root / "last")
    append(root / "last/linked")
    assert (root / "last/dd/f").read_text() == "a/d/f+"
    assert os.stat(root / "last/dd/f").st_ino == os.stat(root / "last/linked").st_ino
    again(host)
    assert (root / "last/dd/f").read_text() == "a/d/f+"
    assert os.stat(root / "last/dd/f").st_nlink == 2
    append(root / "b/x")
    assert (root / "last/x").read_text() == "a/x+"


@pytest.mark.parametrize("how", [os.rename, exchange])
def test_hard_links_after_moves_that_the_daemon_has_seen(host, how):
    """Where directories are is read once; what moves then is noted."""
    for number in range(2):
        (host.lower / f"from{number}").mkdir()
        (host.lower / f"from{number}/f").write_text("f")
        os.link(host.lower / f"from{number}/f", host.lower / f"name{number}")
    root = host.mount()
    os.mkdir(root / "new")
    for number in range(2):
        os.rename(root / f"from{number}", root / f"new/to{number}")
    append(root / "name0")
    assert (root / "new/to0/f").read_text() == "f+"
    if how is exchange:
        os.mkdir(root / "newer")
    how(root / "new", root / "newer")
    append(root / "name1")
    assert (root / "newer/to1/f").read_text() == "f+"


def append(path):
    with open(path, "a") as file:
        file.write("+")


def test_differences_of_moved_directories(host):
    fill(host.lower)
    root = host.mount()
    os.rename(root / "a", root / "b")
    os.rename(root / "b", root / "a")  # there and back is no difference in what is in it

    def diff(*arguments):
        lines = host.stackfs("diff", *arguments, "pod").stdout.decode().splitlines()
        return sorted((line.split()[0], line.split()[-1]) for line in lines)

    assert diff() == [("C", "/a")]
    os.rename(root / "a", root / "b")
    assert diff() == [("A", "/b"), ("A", "/b/d"), ("A", "/b/d/f"), ("A", "/b/x"), ("D", "/a")]
    host.request("snapshot")
    os.rename(root / "b/d", root / "other/d")
    changed = [("A", "/other/d"), ("A", "/other/d/f"), ("C", "/b"), ("C", "/other"), ("D", "/b/d")]
    assert diff("--from", "1") == changed


def test_a_moved_directory_in_an_archive(host, tmp_path):
    """An OCI layer cannot say it; with --redirects it comes back, hard links and all."""
    fill(host.lower)
    root = host.mount()
    os.rename(root / "a", root / "b")
    (root / "b/x").write_text("changed")
    expected = tree(root)
    layer = host.request("snapshot")["layer"]["path"]
    refused = host.stackfs("pack", layer, check=False)
    assert refused.returncode == 1
    assert b"b was moved from /a without" in refused.stderr
    tar = host.stackfs("pack", "--redirects", layer).stdout
    host.stackfs("umount", "pod")
    shutil.rmtree(layer)
    refused = host.stackfs("unpack", "-", stdin=tar, check=False)
    assert refused.returncode == 1
    assert b"does not begin with the name of a directory" in refused.stderr
    name = json.dumps(layer).encode() + b"\n"
    host.stackfs("unpack", "-", stdin=name + tar)
    assert host.stackfs("pack", "--redirects", "-", stdin=name).stdout == tar
    host.stackfs("mount", "pod")
    both_ways(host, expected)


def test_flatten_below_a_snapshot(host):
    """Merged layers, and one above them that refers to a path in them."""
    fill(host.lower)
    root = host.mount()
    os.rename(root / "a", root / "b")
    host.request("snapshot")
    os.rename(root / "b/d", root / "other/d")
    host.request("snapshot")
    os.rename(root / "other", root / "o")
    os.rename(root / "o/d", root / "d")
    held = os.open(root / "d", os.O_RDONLY)
    host.request("snapshot")
    expected = {"d/f": "a/d/f", "o/f": "other/f", "b/x": "a/x"}
    assert tree(root) == expected
    host.stackfs("flatten", "--below", "3", "pod")
    assert os.listdir(held) == ["f"]
    os.close(held)
    both_ways(host, expected)


HOSTILE = [
    b"..",
    b"/..",
    b"/a/../..",
    b"/",
    b"",
    b"a/b",
    b"//a",
    b"/link",
    b"/link/d",
    b"link",
    b"/nowhere/at/all",
    b"/a/x",
    b"/h",
    b"h",
    b"/" + b"n" * 256,
    b"/" + b"/".join([b"d"] * 400),
    b"/a\0b",
    b"\xff\n",
]


def test_hostile_redirects_lead_nowhere(host):
    """Whatever a layer says, it shows files of the layers below it or none."""
    fill(host.lower)
    secret = host.prefix / "secret"
    secret.mkdir()
    (secret / "s").write_text("s")
    (host.lower / "link").symlink_to(secret)
    top = host.prefix / "top"
    top.mkdir()
    for number, value in enumerate(HOSTILE):
        (top / f"h{number}/own").mkdir(parents=True)
        os.setxattr(top / f"h{number}", whiteout.REDIRECT, value)
    (top / "h").mkdir()
    os.setxattr(top / "h", whiteout.REDIRECT, b"/h")
    (top / "a/d/deep").mkdir(parents=True)
    os.setxattr(top / "a/d/deep", whiteout.REDIRECT, b"/a")
    (top / "twin").mkdir()
    os.setxattr(top / "twin", whiteout.REDIRECT, b"/a")
    host.stackfs("mount", "pod", "--lower", top, "--lower", host.lower)
    root = host.root()
    for number in range(len(HOSTILE)):
        assert os.listdir(root / f"h{number}") == ["own"], HOSTILE[number]
    assert os.listdir(root / "h") == []
    assert sorted(os.listdir(root / "a/d/deep")) == ["d", "x"]
    assert sorted(os.listdir(root / "twin")) == ["d", "x"]
    (root / "twin/x").write_text("changed")
    assert (root / "twin/x").read_text() == "changed"
    for path in ("twin", "a/d/deep", "h0", "h"):
        os.rename(root / path, root / "there")
        host.request("snapshot")
        shutil.rmtree(root / "there")
    assert (root / "a/d/f").read_text() == "a/d/f"


def test_a_path_that_no_redirect_can_hold(host):
    """mv(1) then copies."""
    deep = host.lower.joinpath(*["n" * 250] * 12, *["d"])
    subprocess.run(["mkdir", "-p", deep], check=True)
    root = host.mount()
    inner = root.joinpath(*["n" * 250] * 12)
    try:
        os.rename(inner / "d", inner / "e")
    except OSError as e:
        assert os.strerror(e.errno) == "Invalid cross-device link"  # noqa: PT017 (either is right)
        assert os.listdir(inner) == ["d"]
    else:
        assert os.listdir(inner) == ["e"]


def test_the_kernels_overlayfs_reads_them(host):
    """And stackfs reads what that writes, redirects relative to a directory included."""
    fill(host.lower)
    root = host.mount()
    os.rename(root / "a", root / "b")
    os.rename(root / "b/d", root / "e")
    (root / "e/new").write_text("new")
    expected = tree(root)
    host.stackfs("umount", "pod")
    work, point = host.prefix / "kwork", host.prefix / "kernel"
    work.mkdir()
    point.mkdir()
    upper = host.state() / "upper"
    options = f"lowerdir={host.lower},upperdir={upper},workdir={work},redirect_dir=on"
    host.run("mount", "-t", "overlay", "-o", options, "overlay", point)
    seen = host.seen(point)
    assert tree(seen) == expected
    os.rename(seen / "other", seen / "another")
    os.rename(seen / "e", seen / "another/e")
    os.rename(seen / "b", seen / "c")
    expected = tree(seen)
    host.run("umount", point)
    host.stackfs("mount", "pod")
    both_ways(host, expected)
