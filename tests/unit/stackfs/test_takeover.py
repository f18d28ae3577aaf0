"""A request whose reply was lost is made once, wherever between its beginning and end that was."""

import os
import stat
import struct
from types import SimpleNamespace

import pytest

from stackfs import abi, names, requests, takeover
from stackfs.journal import Journal
from stackfs.operations import Operations
from stackfs.requests import Request
from stackfs.stack import Spec, open_stack, resume_stack
from stackfs.tree import Tree

pytestmark = pytest.mark.needs("root")

ROOT = 2
CALLER = SimpleNamespace(pid=77, uid=5, gid=6, umask=0)
RESENT = 1 << 63


def request(opcode, node, body, *, pid=77, unique=10 | RESENT):
    """A request as the kernel writes it (struct fuse_in_header, linux/fuse.h)."""
    header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, 5, 6, pid, 0, 0)
    return Request.parse(header + body)


class Mount:
    """A stack and the handlers over it, without a kernel."""

    def __init__(self, place):
        self.lower = place / "lower"
        self.lower.mkdir()
        for name in ("d", "e"):
            (self.lower / name).mkdir()
        for name in ("a", "b", "d/x"):
            (self.lower / name).write_text(name)
        os.setxattr(self.lower / "a", "user.x", b"1")
        self.spec = Spec((self.lower,), place / "upper")
        self.stack = open_stack(self.spec, (os.fspath(self.lower),))
        self.journal = Journal()
        self._serve()

    def _serve(self):
        self.tree = Tree(self.stack.upper, self.stack.below, self.stack.work, self.journal)
        self.operations = Operations(self.tree)

    async def number(self, name, parent=ROOT):
        """The kernel looks a name up."""
        found = await self.operations.lookup(parent, name, CALLER)
        self.journal.settle()
        return found.st_ino

    def take_over(self, *asked):
        """The daemon has died; another one gets these requests. Returns what it does with them."""
        pinned = {node.fd for node in self.tree.inodes.pinned()}
        self.tree.inodes.contents.close_all()
        for directory in self.tree.inodes._nodes.values():
            if directory is not self.tree.root and hasattr(directory, "fds"):
                self.tree.inodes.close_directory(directory)
        for fd in (self.stack.upper.fd, *(layer.fd for layer in self.stack.sealed)):
            os.close(fd)
        stack = self.stack
        self.stack = resume_stack(self.spec, stack.base_fd, stack.work.fd, stack.lowers)
        fd = os.dup(self.journal.fd)
        self.journal.close()
        self.journal = Journal(fd)
        state = self.journal.state()
        assert {pin.fd for pin in state.pins.values()} <= pinned
        self._serve()
        takeover.restore(self.tree, state)
        return takeover.sort_out(self.tree, state.intent, list(asked))

    def seen(self, name):
        node = self.tree.child(self.tree.root, name)
        return None if node is None else self.tree.attributes(node)

    def close(self):
        self.tree.close()
        self.stack.close()


@pytest.fixture
def mount(tmp_path):
    mount = Mount(tmp_path)
    yield mount
    mount.close()


def mknod(name):
    return request(requests.MKNOD, ROOT, bytes(16) + name + b"\0")


async def test_a_made_file_is_made_again(mount):
    await mount.operations.mknod(ROOT, b"new", stat.S_IFREG | 0o640, 0, CALLER)
    replies, left = mount.take_over(mknod(b"new"))
    assert replies == []
    assert left == [mknod(b"new").data]
    assert mount.seen(b"new") is None


async def test_a_made_file_that_the_caller_knows_of_stays(mount):
    await mount.operations.mknod(ROOT, b"new", stat.S_IFREG | 0o640, 0, CALLER)
    mount.take_over(mknod(b"other"), request(requests.LOOKUP, ROOT, b"new\0"))
    assert mount.seen(b"new").st_uid == 5


async def test_a_file_that_was_there_is_not_unmade(mount):
    with pytest.raises(Exception, match=r"17|exist|FUSEError"):
        await mount.operations.mkdir(ROOT, b"a", 0o755, CALLER)
    ask = request(requests.MKDIR, ROOT, bytes(8) + b"a\0")
    assert mount.take_over(ask) == ([], [ask.data])
    assert stat.S_ISREG(mount.seen(b"a").st_mode)


async def test_half_made_files_are_unmade(mount, monkeypatch):
    """Killed between the file and its owner, over a whiteout and over nothing."""
    await mount.operations.unlink(ROOT, b"b", CALLER)
    mount.journal.settle()
    for name in (b"b", b"new"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "chown", _die)
            with pytest.raises(KeyboardInterrupt):
                await mount.operations.mkdir(ROOT, name, 0o755, CALLER)
        ask = request(requests.MKDIR, ROOT, bytes(8) + name + b"\0")
        assert mount.take_over(ask) == ([], [ask.data])
        assert mount.seen(name) is None
        mount.journal.settle()
        made = await mount.operations.mkdir(ROOT, name, 0o755, CALLER)
        assert made.st_uid == 5


def _die(*arguments, **options):
    raise KeyboardInterrupt


LOSSES = {
    "unlink": (requests.UNLINK, b"a\0", lambda ops: ops.unlink(ROOT, b"a", CALLER)),
    "rmdir": (requests.RMDIR, b"e\0", lambda ops: ops.rmdir(ROOT, b"e", CALLER)),
    "rename": (
        requests.RENAME2,
        struct.pack("<QQ", ROOT, 0) + b"a\0b\0",
        lambda ops: ops.rename(ROOT, b"a", ROOT, b"b", 0, CALLER),
    ),
    "rename directory": (
        requests.RENAME2,
        struct.pack("<QQ", ROOT, 0) + b"d\0n\0",
        lambda ops: ops.rename(ROOT, b"d", ROOT, b"n", 0, CALLER),
    ),
    "exchange": (
        requests.RENAME2,
        struct.pack("<QQ", ROOT, abi.RENAME_EXCHANGE) + b"a\0d\0",
        lambda ops: ops.rename(ROOT, b"a", ROOT, b"d", abi.RENAME_EXCHANGE, CALLER),
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
async def test_what_was_done_is_said(mount, kind):
    opcode, body, act = LOSSES[kind]
    numbers = {name: await mount.number(name) for name in (b"a", b"b", b"d", b"e")}
    await act(mount.operations)
    before = {name: mount.seen(name) and mount.seen(name).st_ino for name in (*numbers, b"n")}
    ask = request(opcode, ROOT, body)
    assert mount.take_over(ask) == ([requests.done(ask.unique)], [])
    for number in numbers.values():
        assert (await mount.operations.getattr(number, CALLER)).st_ino == number
    after = {name: mount.seen(name) and mount.seen(name).st_ino for name in (*numbers, b"n")}
    assert after == before


@pytest.mark.parametrize("kind", LOSSES)
async def test_what_was_not_begun_is_done(mount, kind, monkeypatch):
    """Killed when everything was ready, and the name not taken yet."""
    opcode, body, act = LOSSES[kind]
    numbers = {name: await mount.number(name) for name in (b"a", b"b", b"d", b"e")}
    with monkeypatch.context() as patch:
        patch.setattr(abi, "renameat2", _die)
        patch.setattr(names.whiteout, "make", _die)
        with pytest.raises(KeyboardInterrupt):
            await act(mount.operations)
    ask = request(opcode, ROOT, body)
    assert mount.take_over(ask) == ([], [ask.data])
    for name, number in numbers.items():
        assert mount.seen(name).st_ino == number
        assert (await mount.operations.getattr(number, CALLER)).st_nlink > 0
    mount.journal.settle()
    await act(mount.operations)


async def test_another_thread_asks_for_the_same(mount):
    """Its request is no repetition: it fails as it would have."""
    await mount.operations.unlink(ROOT, b"a", CALLER)
    ask = request(requests.UNLINK, ROOT, b"a\0", pid=78)
    assert mount.take_over(ask) == ([], [ask.data])


async def test_a_new_request_is_no_repetition(mount):
    await mount.operations.unlink(ROOT, b"a", CALLER)
    ask = request(requests.UNLINK, ROOT, b"a\0", unique=12)
    assert mount.take_over(ask) == ([], [ask.data])


async def test_a_link_is_looked_up(mount):
    number = await mount.number(b"a")
    await mount.operations.link(number, ROOT, b"new", CALLER)
    ask = request(requests.LINK, ROOT, struct.pack("<Q", number) + b"new\0")
    (left,) = mount.take_over(ask)[1]
    lookup = Request.parse(left)
    assert (lookup.opcode, lookup.unique, lookup.node) == (requests.LOOKUP, ask.unique, ROOT)
    assert lookup.body == b"new\0"
    assert mount.seen(b"new").st_nlink == 2


async def test_extended_attributes(mount):
    number = await mount.number(b"a")
    await mount.operations.removexattr(number, b"user.x", CALLER)
    ask = request(requests.REMOVEXATTR, number, b"user.x\0")
    assert mount.take_over(ask) == ([requests.done(ask.unique)], [])
    mount.journal.settle()
    await mount.operations.setxattr(number, b"user.y", b"1", CALLER)
    ask = request(
        requests.SETXATTR, number, struct.pack("<II", 1, os.XATTR_CREATE) + b"user.y\x001"
    )
    (left,) = mount.take_over(ask)[1]
    assert Request.parse(left).body == struct.pack("<II", 1, 0) + b"user.y\x001"


async def test_the_journal_is_written_anew(mount):
    """After many changes it says the same, and is short."""
    numbers = {name: await mount.number(name) for name in (b"a", b"d")}
    await mount.operations.unlink(ROOT, b"a", CALLER)
    mount.journal.settle()
    await mount.operations.rename(ROOT, b"d", ROOT, b"moved", 0, CALLER)
    for _ in range(30_000):
        await mount.operations.forget([(await mount.number(b"b"), 1)])
    assert mount.journal._end < 1 << 20
    mount.take_over()
    assert mount.seen(b"moved").st_ino == numbers[b"d"]
    assert (await mount.operations.getattr(numbers[b"a"], CALLER)).st_nlink == 0
    assert (await mount.operations.getattr(numbers[b"d"], CALLER)).st_ino == numbers[b"d"]
