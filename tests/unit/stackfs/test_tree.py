"""The tree without a mount: what the kernel's references keep, and what they do not."""

import errno
import os
import stat

import pytest

from stackfs import abi, attributes, names
from stackfs.layers import whiteout
from stackfs.layers.layer import DIRECTORY
from stackfs.layers.work import remove
from stackfs.names import Owner
from stackfs.nodes import Directory
from stackfs.rename import rename
from stackfs.stack import Spec, open_stack
from stackfs.tree import Tree

pytestmark = pytest.mark.needs("root", "mount_ns")

ROOT_USER = Owner(0, 0)


class Stacked:
    """An open stack over `lower`, and its tree."""

    def __init__(self, place):
        self.place = place
        self.lower = place / "lower"
        self.lower.mkdir()

    def open(self):
        lower = os.fspath(self.lower)
        self.stack = open_stack(Spec((self.lower,), self.place / "upper"), (lower,))
        self.tree = Tree(self.stack.upper, self.stack.below, self.stack.work)
        return self.tree

    def close(self):
        self.tree.close()
        self.stack.close()

    def at(self, path):
        node = self.tree.root
        for name in path.encode().split(b"/"):
            node = self.tree.existing(node, name)
        return node


@pytest.fixture
def stacked(tmp_path):
    stacked = Stacked(tmp_path)
    yield stacked
    stacked.close()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_forgotten_inodes_go(stacked):
    (stacked.lower / "d").mkdir()
    (stacked.lower / "d/f").write_text("")
    tree = stacked.open()
    node, directory = stacked.at("d/f"), stacked.at("d")
    number = node.attr.st_ino
    node.lookups = directory.lookups = 2
    tree.inodes.forget([(number, 1)])
    assert number in tree.inodes
    tree.inodes.forget([(number, 1), (directory.attr.st_ino, 2), (12345, 1)])
    assert number not in tree.inodes
    assert directory.entries is None
    assert directory.fds == {}
    assert stacked.at("d/f").attr.st_ino == number


def test_unlinked_files_keep_their_descriptors_until_forgotten(stacked):
    tree = stacked.open()
    before = descriptors()
    node, fd = names.create(tree, tree.root, b"f", 0o600, ROOT_USER)
    tree.inodes.contents.hold(node, fd)
    node.lookups = 1
    names.unlink(tree, tree.root, b"f")
    os.write(fd, b"x")
    node.stale = True
    assert (tree.attributes(node).st_nlink, node.attr.st_size) == (0, 1)
    tree.inodes.forget([(node.attr.st_ino, 1)])
    assert node.attr.st_ino not in tree.inodes
    assert descriptors() == before


def test_directory_descriptors_are_limited(stacked):
    """Of many directories the older ones' are closed, and opened again when needed."""
    for number in range(60):
        path = stacked.lower / str(number) / "a/b"
        path.mkdir(parents=True)
        (path / "f").write_text("")
    tree = stacked.open()
    tree.inodes._max_open = 20
    before = descriptors()
    for _ in range(2):
        for number in range(60):
            tree.inodes.trim()
            stacked.at(f"{number}/a/b/f")
            assert descriptors() - before <= 24


def test_the_directories_in_a_merged_directory_are_counted(stacked):
    for name in ("a", "b"):
        (stacked.lower / "d" / name).mkdir(parents=True)
    tree = stacked.open()
    top = stacked.at("d")
    changes = [
        lambda: names.mkdir(tree, top, b"c", 0o755, ROOT_USER),
        lambda: names.mkdir(tree, top, b"e", 0o755, ROOT_USER),
        lambda: names.rmdir(tree, top, b"a"),
        lambda: rename(tree, top, b"c", tree.root, b"c", 0),
        lambda: rename(tree, tree.root, b"c", top, b"a", 0),
    ]
    links = []
    for change in changes:
        change()
        links.append(tree.attributes(top).st_nlink)
    assert links == [5, 6, 5, 4, 5]


def test_a_time_of_change_that_a_file_has_already_is_no_change(stacked):
    (stacked.lower / "f").write_text("")
    (stacked.lower / "d").mkdir()
    tree = stacked.open()
    node, directory = stacked.at("f"), stacked.at("d")
    same = attributes.Change(mtime_ns=node.attr.st_mtime_ns)
    assert attributes.is_moot(tree, node, same)
    assert not attributes.is_moot(tree, node, same._replace(atime_ns=0))
    assert not attributes.is_moot(tree, node, attributes.Change(mtime_ns=0))
    there = tree.attributes(directory).st_mtime_ns
    assert not attributes.is_moot(tree, directory, attributes.Change(mtime_ns=there))


def test_descriptors_of_files_are_limited(stacked):
    for number in range(20):
        (stacked.lower / str(number)).write_text(str(number))
    tree = stacked.open()
    contents = tree.inodes.contents
    contents._most = 5
    for _ in range(2):
        for number in range(20):
            fd = contents.for_reading(stacked.at(str(number)))
            assert os.pread(fd, 9, 0) == b"%d" % number
            assert len(contents) <= 5


def test_deep_directories(stacked):
    """As deep as a path can be, and opened again from the root on."""
    tree = stacked.open()
    at = tree.root
    for _ in range(2000):
        at = names.mkdir(tree, at, b"d", 0o755, ROOT_USER)
    tree.inodes._max_open = 10
    for _ in range(10):
        tree.inodes.trim()
    assert isinstance(at, Directory)
    names.mkdir(tree, at, b"last", 0o755, ROOT_USER)
    assert list(tree.entries(at)) == [b"last"]
    remove(stacked.stack.upper.fd, b"d")
    assert os.listdir(stacked.place / "upper") == []


def test_two_files_that_claim_one_number(stacked):
    """The second gets another, as long as both are known."""
    (stacked.lower / "a").write_text("")
    (stacked.lower / "b").write_text("")
    os.setxattr(stacked.lower, whiteout.LAYER_NUMBER, b"1")
    for name in "ab":
        os.setxattr(stacked.lower / name, whiteout.NUMBER, b"777")
    stacked.open()
    numbers = [stacked.at(name).attr.st_ino for name in "ab"]
    assert numbers[0] == 777
    assert numbers[1] != 777
    assert stacked.at("a") is not stacked.at("b")


@pytest.mark.parametrize("claimed", [b"1", b"2"])
def test_nobody_claims_the_barriers_number_or_the_roots(stacked, claimed):
    (stacked.lower / "a").write_text("")
    os.setxattr(stacked.lower, whiteout.LAYER_NUMBER, b"1")
    os.setxattr(stacked.lower / "a", whiteout.NUMBER, claimed)
    stacked.open()
    assert stacked.at("a").attr.st_ino > 2


def test_lower_layers_cannot_be_written(stacked):
    """The kernel refuses it: they are read-only mounts."""
    (stacked.lower / "f").write_text("")
    stacked.open()
    with pytest.raises(OSError, match="Read-only"):
        os.open("f", os.O_WRONLY, dir_fd=stacked.stack.lowers[0].fd)


def test_a_copy_that_fails_leaves_everything_as_it_was(stacked, monkeypatch):
    (stacked.lower / "d").mkdir()
    (stacked.lower / "d/f").write_text("contents")
    tree = stacked.open()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stackfs.layers.copying._write_out", full)
    node = stacked.at("d/f")
    with pytest.raises(OSError, match="No space"):
        attributes.change(tree, node, attributes.Change(mode=0o600))
    assert not node.layer.writable
    assert os.listdir(stacked.place / "work") == []
    assert os.listdir(stacked.place / "upper/d") == []
    monkeypatch.undo()
    attributes.change(tree, node, attributes.Change(mode=0o600))
    assert stat.S_IMODE(os.stat(stacked.place / "upper/d/f").st_mode) == 0o600


def test_half_copied_links_are_whole_files(stacked):
    """Stopped between two names of one file, a copy-up leaves both readable."""
    (stacked.lower / "a").write_text("contents")
    os.link(stacked.lower / "a", stacked.lower / "b")
    stacked.open()
    real = os.link
    number = stacked.at("a").attr.st_ino
    done = []

    def stopping(*arguments, **options):
        if done:
            raise KeyboardInterrupt
        done.append(real(*arguments, **options))

    change = attributes.Change(mode=0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", stopping)
        with pytest.raises(KeyboardInterrupt):
            attributes.change(stacked.tree, stacked.at("a"), change)
    stacked.close()
    stacked.open()
    assert {stacked.at(name).attr.st_size for name in "ab"} == {8}
    assert number in [stacked.at(name).attr.st_ino for name in "ab"]


def test_renaming_over_a_directory_full_of_whiteouts(stacked):
    """What they hid does not show again."""
    for name in ("target", "source"):
        (stacked.lower / name).mkdir()
        (stacked.lower / name / f"in-{name}").write_text("")
    tree = stacked.open()
    names.unlink(tree, stacked.at("target"), b"in-target")
    rename(tree, tree.root, b"source", tree.root, b"target", 0)
    stacked.close()
    stacked.open()
    assert list(stacked.tree.entries(stacked.tree.root)) == [b"target"]
    assert list(stacked.tree.entries(stacked.at("target"))) == [b"in-source"]


def reopened(stacked):
    stacked.close()
    stacked.open()
    return stacked.tree


@pytest.mark.parametrize("flags", [0, abi.RENAME_EXCHANGE])
def test_a_new_directory_hides_the_deleted_one_it_is_moved_over(stacked, flags):
    (stacked.lower / "old").mkdir()
    (stacked.lower / "old/hidden").write_text("")
    tree = stacked.open()
    names.unlink(tree, stacked.at("old"), b"hidden")
    names.rmdir(tree, tree.root, b"old")
    names.mkdir(tree, tree.root, b"new", 0o755, ROOT_USER)
    if flags:
        names.mkdir(tree, tree.root, b"old", 0o755, ROOT_USER)
    rename(tree, tree.root, b"new", tree.root, b"old", flags)
    tree = reopened(stacked)
    assert tree.entries(stacked.at("old")) == {}
    assert b"old" in tree.entries(tree.root)


def test_a_rename_over_a_directory_that_stops_half_way(stacked, monkeypatch):
    """The empty directory that was to be replaced stays empty, though it hid names."""
    (stacked.lower / "target").mkdir()
    (stacked.lower / "target/hidden").write_text("")
    tree = stacked.open()
    names.unlink(tree, stacked.at("target"), b"hidden")
    names.mkdir(tree, tree.root, b"source", 0o755, ROOT_USER)

    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("stackfs.rename._move", stopping)
    with pytest.raises(KeyboardInterrupt):
        rename(tree, tree.root, b"source", tree.root, b"target", 0)
    tree = reopened(stacked)
    assert set(tree.entries(tree.root)) == {b"source", b"target"}
    assert tree.entries(stacked.at("target")) == {}


@pytest.mark.parametrize("flags", [0, abi.RENAME_EXCHANGE])
def test_a_directory_whose_rename_stops_half_way(stacked, monkeypatch, flags):
    """It has a redirect to its own place, and nothing has moved; then it moves again."""
    for name in ("one", "two"):
        (stacked.lower / name).mkdir()
        (stacked.lower / name / f"in-{name}").write_text("")
    tree = stacked.open()
    new = b"two" if flags else b"new"

    def stopping(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(abi, "renameat2", stopping)
        with pytest.raises(KeyboardInterrupt):
            rename(tree, tree.root, b"one", tree.root, new, flags)
    tree = reopened(stacked)
    assert whiteout.marks(tree.upper.fd, b"one") == (False, b"/one")
    assert set(tree.entries(tree.root)) == {b"one", b"two"}
    assert list(tree.entries(stacked.at("one"))) == [b"in-one"]
    rename(tree, tree.root, b"one", tree.root, new, flags)
    tree = reopened(stacked)
    assert list(tree.entries(stacked.at(new.decode()))) == [b"in-one"]
    assert set(tree.entries(tree.root)) == ({b"one", b"two"} if flags else {b"new", b"two"})


def test_a_path_too_long_for_a_redirect(tmp_path):
    fd = os.open(tmp_path, DIRECTORY)
    try:
        with pytest.raises(OSError, match="too long") as failed:
            whiteout.set_redirect(fd, b".", b"/" + b"n" * 100_000)
    finally:
        os.close(fd)
    assert failed.value.errno == errno.EXDEV
