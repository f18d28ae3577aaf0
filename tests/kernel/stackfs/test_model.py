"""Random sequences of operations on a stack and on a plain directory end alike.

The model is a copy of the lower layer on the same file system: whatever the kernel answers to an
operation there, errno included, it answers in the stack too. Many sequences share one mount, each
with a directory of its own in the lower layer; at the end the daemon is replaced, and all of them
must still be equal.
"""

import itertools
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from stackfs import abi

pytestmark = [pytest.mark.needs("root", "fuse"), pytest.mark.slow]

EXAMPLES = 50

PATHS = [
    "a",
    "b",
    "c",
    "d",
    "b/a",
    "b/b",
    "b/c",
    "b/d",
    "b/b/a",
    "b/b/c",
    "b/b/d",
    "d/a",
    "d/b",
    "d/b/a",
    "a/a",
    "e/a",
    "e/b",
    "e/e/l",
    "b/e/f",
    "d/e/a",
    "d/f/g",
]
paths = st.sampled_from(PATHS)
directories = st.sampled_from(["b", "d", "b/b", "d/b", "e", "e/e", "b/e", "e/b", "e/e/a", "e/e/f"])
data = st.binary(min_size=1, max_size=40)
flags = st.sampled_from([0, 0, 0, abi.RENAME_NOREPLACE, abi.RENAME_EXCHANGE])


def populate(at):
    """What a sequence begins with."""
    (at / "b/b").mkdir(parents=True)
    (at / "e/e/f").mkdir(parents=True)
    (at / "e/e/a").write_text("in e/e")
    (at / "e/e/f/g").write_text("in e/e/f")
    (at / "a").write_text("the file a\n")
    (at / "b/a").write_text("another\n")
    (at / "b/b/c").write_bytes(b"deep" * 2000)
    os.link(at / "a", at / "c")
    os.link(at / "a", at / "b/d")
    os.link(at / "a", at / "e/e/f/l")
    (at / "b/c").symlink_to("a")
    os.mkfifo(at / "b/b/d", 0o640)
    os.setxattr(at / "b/a", "user.mark", b"lower")
    os.chmod(at / "b/a", 0o4751)
    os.chown(at / "b/b", 12, 34)


def describe(top):
    """Everything that a program can see of a tree, but times and inode numbers."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = look(path)
    return found


def look(path):
    at = os.lstat(path)
    contents = None
    if stat.S_ISREG(at.st_mode):
        with open(path, "rb") as file:
            contents = file.read()
    elif stat.S_ISLNK(at.st_mode):
        contents = os.readlink(path)
    size = None if stat.S_ISDIR(at.st_mode) else at.st_size
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    return (at.st_mode, at.st_nlink, at.st_uid, at.st_gid, at.st_rdev, size, contents, xattrs)


def remove_tree(at):
    """As shutil.rmtree, which opens what it is given before it looks: a fifo would block it."""
    if stat.S_ISDIR(os.lstat(at).st_mode):
        shutil.rmtree(at)
    else:
        os.rmdir(at)


def outcome(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except OSError as e:
        return os.strerror(e.errno)


class Stacked(RuleBasedStateMachine):
    """One sequence; `both` does an operation in the stack and in the model."""

    host = None
    cases = None

    def __init__(self):
        super().__init__()
        name = f"case{next(self.cases)}"
        self.tops = [self.host.root() / name, self.host.prefix / "model" / name]
        self.files = []

    def both(self, operation, *names, **options):
        ends = [outcome(operation, *(top / name for name in names), **options) for top in self.tops]
        assert ends[0] == ends[1], (operation, names)
        return ends[0]

    @rule(path=paths, contents=data, offset=st.integers(0, 9000))
    def write(self, path, contents, offset):
        def write(at):
            fd = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644)
            try:
                return os.pwrite(fd, contents, offset)
            finally:
                os.close(fd)

        self.both(write, path)

    @rule(path=paths, contents=data)
    def append(self, path, contents):
        def append(at):
            fd = os.open(at, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            try:
                return os.write(fd, contents)
            finally:
                os.close(fd)

        self.both(append, path)

    @rule(path=paths)
    def create_exclusively(self, path):
        self.both(lambda at: os.close(os.open(at, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)), path)

    @rule(path=paths, size=st.integers(0, 9000))
    def truncate(self, path, size):
        def truncate(at):
            fd = os.open(at, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)

        self.both(truncate, path)

    @rule(path=paths)
    def mkdir(self, path):
        self.both(os.mkdir, path)

    @rule(path=paths)
    def rmdir(self, path):
        self.both(os.rmdir, path)

    @rule(path=paths)
    def unlink(self, path):
        self.both(os.unlink, path)

    @rule(path=paths, make=st.sampled_from([None, os.mkdir, Path.touch, os.mkfifo]))
    def replace(self, path, make):
        """Remove whatever is there, and put something else in its place, or nothing."""

        def replace(at):
            if stat.S_ISDIR(os.lstat(at).st_mode):
                shutil.rmtree(at)
            else:
                os.unlink(at)
            if make is not None:
                make(at)

        self.both(replace, path)

    @rule(path=st.sampled_from(["b", "b/b", "d"]))
    def make_anew(self, path):
        """A directory over a deleted one: nothing of the old one may show again."""

        def make_anew(at):
            remove_tree(at)
            os.mkdir(at)

        self.both(make_anew, path)

    @rule(path=directories, new=directories, how=st.sampled_from([0, 0, abi.RENAME_EXCHANGE]))
    def rename_directory(self, path, new, how):
        """Of a lower layer, mostly; what is in it moves along."""

        def rename(at, to):
            if at.is_dir() or to.is_dir():
                abi.renameat2(-100, os.fsencode(at), -100, os.fsencode(to), how)

        self.both(rename, path, new)

    @rule(path=st.sampled_from(["b", "b/b", "d"]), new=st.sampled_from(["b", "b/b", "d"]))
    def move_directory(self, path, new):
        def move(at, to):
            if to.is_dir() and path not in new:
                remove_tree(to)
            os.rename(at, to)

        self.both(move, path, new)

    @rule(path=paths, new=paths, how=flags)
    def rename(self, path, new, how):
        def rename(at, to):
            abi.renameat2(-100, os.fsencode(at), -100, os.fsencode(to), how)

        self.both(rename, path, new)

    @rule(path=paths, new=paths)
    def link(self, path, new):
        self.both(lambda at, to: os.link(at, to, follow_symlinks=False), path, new)

    @rule(path=paths, text=paths)
    def symlink(self, path, text):
        self.both(lambda at: os.symlink(text, at), path)

    @rule(path=paths, mode=st.integers(0, 0o7777))
    def chmod(self, path, mode):
        self.both(lambda at: None if at.is_symlink() else os.chmod(at, mode), path)

    @rule(path=paths, uid=st.integers(0, 3), gid=st.integers(0, 3))
    def chown(self, path, uid, gid):
        self.both(lambda at: os.chown(at, uid, gid, follow_symlinks=False), path)

    @rule(path=paths, ns=st.integers(0, 2**31 * 10**9))
    def utime(self, path, ns):
        def utime(at):
            os.utime(at, ns=(ns, ns), follow_symlinks=False)
            return os.lstat(at).st_mtime_ns

        self.both(utime, path)

    @rule(path=paths, value=data)
    def set_xattr(self, path, value):
        self.both(lambda at: os.setxattr(at, "trusted.mark", value, follow_symlinks=False), path)

    @rule(path=paths)
    def remove_xattr(self, path):
        self.both(lambda at: os.removexattr(at, "user.mark", follow_symlinks=False), path)

    @rule(path=paths)
    def open(self, path):
        if len(self.files) > 3:
            return
        opened = [outcome(os.open, top / path, os.O_RDWR | os.O_NONBLOCK) for top in self.tops]
        assert isinstance(opened[0], int) == isinstance(opened[1], int), opened
        if isinstance(opened[0], int):
            self.files.append(opened)

    @rule(contents=data, offset=st.integers(0, 9000))
    def write_to_open(self, contents, offset):
        for pair in self.files:
            ends = [outcome(os.pwrite, fd, contents, offset) for fd in pair]
            assert ends[0] == ends[1]

    @rule()
    def compare_open(self):
        for pair in self.files:
            seen = [os.fstat(fd) for fd in pair]
            for field in ("st_mode", "st_nlink", "st_size", "st_uid"):
                assert getattr(seen[0], field) == getattr(seen[1], field), field
            ends = [outcome(os.pread, fd, 1 << 16, 0) for fd in pair]
            assert ends[0] == ends[1]

    @rule(what=st.sampled_from(["snapshot", "snapshot", "flatten", "restart", "kill", *[""] * 12]))
    def disturb(self, what):
        if what == "snapshot":
            self.host.request("snapshot")
        elif what == "flatten":
            self.host.stackfs("flatten", "pod")
        elif what == "kill":
            self.host.kill_daemon()
        elif what == "restart" and not self.files:
            self.host.stackfs("umount", "pod")
            self.host.stackfs("mount", "pod")

    @invariant()
    def equal(self):
        assert describe(self.tops[0]) == describe(self.tops[1])

    def teardown(self):
        for pair in self.files:
            for fd in pair:
                os.close(fd)


def test_stack_behaves_as_a_plain_directory(host):
    for number in range(EXAMPLES + 10):
        populate(host.lower / f"case{number}")
    host.run("cp", "-a", host.lower, host.prefix / "model")
    untouched = describe(host.lower)
    host.mount()
    Stacked.host, Stacked.cases = host, itertools.count()
    run_state_machine_as_test(
        Stacked,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # a shrunk sequence would need a case of its own
            suppress_health_check=list(HealthCheck),
        ),
    )
    before = describe(host.root())
    assert before == describe(host.prefix / "model")
    assert describe(host.lower) == untouched
    numbers = {path: os.lstat(host.root() / path).st_ino for path in before}
    host.kill_all()
    host.stackfs("mount", "pod")
    assert describe(host.root()) == before
    assert {path: os.lstat(host.root() / path).st_ino for path in before} == numbers
