"""Merging snapshots and going back to one: nothing is lost, whatever interrupts it."""

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest

from stackfs import mounts
from stackfs.layers import whiteout

pytestmark = pytest.mark.needs("root", "fuse")


def seen(root):
    """Everything that a program can see of a tree."""
    found = {}
    pending = [b"."]
    while pending:
        path = pending.pop()
        at = os.path.join(os.fsencode(root), path)
        status = os.lstat(at)
        kind = stat.S_IFMT(status.st_mode)
        content = None
        if kind == stat.S_IFREG:
            with open(at, "rb") as file:
                content = file.read()
        elif kind == stat.S_IFLNK:
            content = os.readlink(at)
        elif kind == stat.S_IFDIR:
            content = sorted(os.listdir(at))
            pending += [os.path.join(path, name) for name in content]
        names = sorted(os.listxattr(at, follow_symlinks=False))
        xattrs = [(name, os.getxattr(at, name, follow_symlinks=False)) for name in names]
        links = status.st_nlink if kind != stat.S_IFDIR else 0
        times = status.st_mtime_ns
        owner = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
        found[path] = (owner, status.st_ino, links, times, content, xattrs)
    return found


def fill_lower(lower):
    for path in ("a", "gone", "dir/x", "dir/y", "hidden/z", "file", "back"):
        (lower / path).parent.mkdir(exist_ok=True)
        (lower / path).write_text(f"lower {path}")
    os.link(lower / "a", lower / "dir/linked")


def write_first(root):
    (root / "d/e/f").mkdir(parents=True)
    (root / "d/e/f/deep").write_text("deep")
    (root / "d/one").write_text("1")
    (root / "d/two").write_text("2")
    os.link(root / "d/one", root / "d/e/one")
    os.symlink("nowhere", root / "d/symlink")
    os.mkfifo(root / "d/fifo")
    os.mknod(root / "d/device", 0o20640, os.makedev(1, 5))
    os.mknod(root / "d/socket", stat.S_IFSOCK | 0o755)
    os.unlink(root / "gone")
    os.unlink(root / "back")
    os.setxattr(root / "d/two", "user.note", b"value")
    with open(root / "d/sparse", "wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"middle")


def write_second(root):
    for name in ("x", "y", "linked"):
        os.unlink(root / "dir" / name)
    os.rmdir(root / "dir")
    (root / "dir").mkdir()
    (root / "dir/new").write_text("in an opaque directory")
    os.unlink(root / "d/two")
    (root / "d/two").mkdir()
    (root / "d/two/below").write_text("a file became a directory")
    os.unlink(root / "hidden/z")
    os.rmdir(root / "hidden")
    (root / "hidden").write_text("a directory became a file")
    (root / "back").write_text("came back")
    os.chown(root / "d/e", 11, 22)
    (root / "passing").write_text("will be gone")


def write_third(root):
    with open(root / "d/one", "a") as file:
        file.write("+")
    os.unlink(root / "passing")
    os.chmod(root / "file", 0o4711)
    os.rename(root / "d/e/f/deep", root / "d/moved")
    os.unlink(root / "hidden")
    (root / "hidden").mkdir(mode=0o711)
    os.utime(root / "d/e", ns=(10**18 + 1, 10**18 + 2))


@pytest.fixture
def root(host):
    """A stack with three sealed layers in which everything that can happen has happened."""
    fill_lower(host.lower)
    root = host.mount()
    for write in (write_first, write_second, write_third):
        write(root)
        host.request("snapshot")
    (root / "unsealed").write_text("in the upper layer")
    os.unlink(root / "back")
    forget(host)
    return root


def flatten(host, *arguments):
    return json.loads(host.stackfs("flatten", "pod", "--json", *arguments).stdout)


def forget(host):
    """Let the kernel ask again for everything that is not in use."""
    mounts.drop_unused(host.seen(host.prefix / "autopod/pod"))


def layers(host):
    return sorted(os.listdir(host.state() / "layers"), key=int)


@pytest.mark.slow
def test_the_same_is_seen_with_one_layer(host, root):
    before, ids = seen(root), [one["id"] for one in host.request("status")["layers"]]
    differences = host.stackfs("diff", "pod", "--json").stdout
    layer = flatten(host)
    assert layer["merged"] == ids
    assert layer["id"] not in ids
    assert layer["path"] == os.fspath(host.state() / "layers/3")
    assert host.request("status")["layers"] == [{"id": layer["id"], "path": layer["path"]}]
    assert layers(host) == ["3"]
    assert os.listdir(host.state() / "work") == []
    forget(host)
    assert seen(root) == before
    assert host.stackfs("diff", "pod", "--json").stdout == differences
    assert host.stackfs("check", "pod").returncode == 0
    merged = host.state() / "layers/3"
    assert os.stat(merged / "d/sparse").st_blocks * 512 < 1 << 20
    assert (merged / "passing").is_char_device()  # it hides what may still be below
    host.kill_daemon()
    assert seen(root) == before
    host.kill_all()
    host.stackfs("mount", "pod")
    assert seen(root) == before
    (root / "more").write_text("more")
    assert host.request("snapshot")["layer"]["path"] == os.fspath(host.state() / "layers/4")
    assert flatten(host)["path"] == os.fspath(host.state() / "layers/4")
    assert not (host.state() / "layers/4/passing").exists()  # and now there is nothing
    assert (host.state() / "layers/4/back").is_char_device()
    assert host.stackfs("check", "pod").returncode == 0
    forget(host)
    del before[b"."]
    assert {path: one for path, one in seen(root).items() if path in before} == before


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_open_goes_on(host, root, killed):
    """Readers, writers, directories and files whose known name has gone, across a merge.

    Also with another daemon after it.
    """
    (root / "d/pinned").write_text("pinned")
    forget(host)
    os.link(root / "d/pinned", root / "d/e/pinned")
    os.link(root / "d/pinned", root / "d/third")
    pinned = os.open(root / "d/third", os.O_RDWR)
    os.unlink(root / "d/third")
    nameless = os.open(root / "d/two/below", os.O_RDWR)
    host.request("snapshot")
    os.unlink(root / "d/two/below")
    reader = os.open(root / "d/one", os.O_RDONLY)
    linked = os.open(root / "d/e/one", os.O_RDWR)
    directory = os.open(root / "d/e", os.O_RDONLY)
    numbers = {fd: os.fstat(fd).st_ino for fd in (pinned, nameless, reader, linked, directory)}
    flatten(host)
    if killed:
        host.kill_daemon()
    forget(host)
    assert {fd: os.fstat(fd).st_ino for fd in numbers} == numbers
    assert os.pread(reader, 9, 0) == b"1+"
    for fd in (pinned, linked, nameless):
        os.pwrite(fd, b"X", 0)
        os.fsync(fd)
    forget(host)
    assert os.pread(reader, 9, 0) == b"X+"
    assert (root / "d/one").read_text() == (root / "d/e/one").read_text() == "X+"
    assert (root / "d/pinned").read_text() == (root / "d/e/pinned").read_text() == "Xinned"
    assert os.pread(nameless, 99, 0) == b"X file became a directory"
    assert sorted(os.listdir(directory)) == ["f", "one", "pinned"]
    made = os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
    assert (root / "d/e/made").stat().st_uid == 0
    for fd in (*numbers, made):
        os.close(fd)


def test_merging_some_and_merging_nothing(host, root):
    before, ids = seen(root), [one["id"] for one in host.request("status")["layers"]]
    refused = host.stackfs("flatten", "pod", "--below", "9", check=False)
    assert b"no snapshot '9'" in refused.stderr
    layer = flatten(host, "--below", ids[0])
    assert layer["merged"] == ids[1:]
    assert layers(host) == ["2", "3"]
    forget(host)
    assert seen(root) == before
    assert flatten(host, "--below", "3") is None
    host.stackfs("umount", "pod")
    assert flatten(host)["merged"] == [ids[0], layer["id"]]
    assert layers(host) == ["3"]
    assert os.listdir(host.state() / "work") == []
    assert flatten(host) is None
    host.stackfs("mount", "pod")
    assert seen(root) == before


def test_a_layer_that_is_being_packed_is_not_merged(host, root):
    fd = os.open(host.state() / "layers/2", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    refused = host.stackfs("flatten", "pod", check=False)
    assert b"layer 2 is being packed" in refused.stderr
    fcntl.flock(fd, fcntl.LOCK_EX)
    refused = host.stackfs("pack", host.state() / "layers/2", check=False)
    assert b"is being merged" in refused.stderr
    os.close(fd)
    assert layers(host) == ["1", "2", "3"]


DIES = """
import os, signal, sys
from stackfs import cli, merging, stack
from stackfs.layers import copying, flatten

died = os.environ["AUTOPOD_PREFIX"] + "/died"

def die(*arguments):
    open(died, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)

def after(number, function):
    def counted(*arguments, **keywords):
        nonlocal number
        number -= 1
        if number >= 0 or os.path.exists(died):  # the next daemon lives
            return function(*arguments, **keywords)
        return die()
    return counted

place = sys.argv[1]
if place == "copying":
    copying.make_like = after(5, copying.make_like)
elif place == "written":
    merging.abi.syncfs = die
elif place == "exchanged":
    stack.retire = after(1, stack.retire)  # mounting calls it, too
elif place == "retired":
    rename = os.rename
    stack.os.rename = after(1, os.rename)
elif place == "removing":
    merging.remove = after(2, merging.remove)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", ["command", "daemon"])
@pytest.mark.parametrize("place", ["copying", "written", "exchanged", "retired", "removing"])
def test_killed_anywhere(host, root, place, by):
    """The command, of a pod that is mounted or not; or the daemon, in the middle of its part."""
    before = seen(root)
    if by == "daemon" and place in ("exchanged", "retired"):
        host.stackfs("umount", "pod")
        host.run(sys.executable, "-c", DIES, place, "mount", "pod")
        before = seen(root)
        assert host.stackfs("flatten", "pod", check=False).returncode == 1
        assert seen(root) == before
        host.kill_all()
    else:
        if by == "command":
            host.stackfs("umount", "pod")
        run = host.run(sys.executable, "-c", DIES, place, "flatten", "pod", check=False)
        assert run.returncode == -9
    if by == "daemon" and place not in ("exchanged", "retired"):  # it goes on
        forget(host)
        assert seen(root) == before
        host.kill_daemon()
        assert seen(root) == before
        host.kill_all()
    host.stackfs("mount", "pod")
    assert seen(root) == before
    done = place in ("exchanged", "retired", "removing")
    assert layers(host) == (["3"] if done else ["1", "2", "3"])
    assert os.listdir(host.state() / "work") == []
    assert host.stackfs("check", "pod").returncode == 0
    if not done:
        assert flatten(host) is not None
        assert seen(root) == before


def test_writers_go_on(host, root):
    """Programs append, rename and remove while layers are sealed and merged; no line is lost."""
    stop = threading.Event()
    written = [0] * 3
    faults = []

    def write(index):
        try:
            while not stop.is_set():
                written[index] += 1
                with open(root / f"d/log{index}", "a") as file:
                    file.write(f"{written[index]}\n")
                os.rename(root / f"d/log{index}", root / f"d/e/log{index}")
                os.rename(root / f"d/e/log{index}", root / f"d/log{index}")
        except OSError as e:
            faults.append(e)

    writers = [threading.Thread(target=write, args=(index,)) for index in range(len(written))]
    for writer in writers:
        writer.start()
    try:
        for _ in range(3):
            host.request("snapshot")
            host.request("snapshot")
            flatten(host)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not faults
    forget(host)
    for index, count in enumerate(written):
        lines = (root / f"d/log{index}").read_text().splitlines()
        assert lines == [str(number) for number in range(1, count + 1)]


def test_going_back_to_a_snapshot(host):
    (host.lower / "base").write_text("lower")
    root = host.mount()
    states = [seen(root)]
    for number in range(3):
        (root / "file").write_text(f"version {number}")
        os.chmod(root, 0o700 + number)
        (root / f"file{number}").write_text("x")
        forget(host)
        states.append(seen(root))
        host.request("snapshot")
    (root / "unsealed").write_text("unsealed")
    refused = host.stackfs("rollback", "pod", "--to", "2", check=False)
    assert b"pod is mounted" in refused.stderr
    host.stackfs("umount", "pod")
    refused = host.stackfs("rollback", "pod", "--to", "7", check=False)
    assert b"no snapshot '7'" in refused.stderr
    aside = host.stackfs("rollback", "pod", "--to", "2").stdout.decode().strip()
    assert sorted(os.listdir(aside)) == ["3", "upper"]
    assert os.listdir(f"{aside}/upper") == ["unsealed"]
    assert layers(host) == ["1", "2"]
    host.stackfs("mount", "pod")
    assert seen(root) == states[2]
    (root / "file").write_text("another third version")
    assert host.request("snapshot")["layer"]["path"] == os.fspath(host.state() / "layers/3")
    first = host.request("status")["layers"][-1]["id"]
    host.stackfs("umount", "pod")
    shutil.rmtree(host.prefix / "run")  # as a reboot does
    assert host.stackfs("rollback", "pod", "--to", first, "--force").stdout == b""
    assert os.listdir(host.state() / "aside") == [os.path.basename(aside)]
    host.stackfs("mount", "pod")
    assert seen(root) == states[1]
    host.stackfs("umount", "pod")
    assert host.stackfs("rollback", "pod", "--to", "0", "--json").stdout.startswith(b'{"aside": "/')
    host.stackfs("mount", "pod")
    assert [*seen(root)] == [*states[0]]
    assert (root / "base").read_text() == "lower"
    assert subprocess.run(["rm", "-rf", aside], check=False).returncode == 0


def test_a_flattened_layer_is_an_image_layer(host, root):
    """It is packed and unpacked as any other, and does not say what it was made of."""
    flatten(host)
    tar = host.stackfs("pack", host.state() / "layers/3").stdout
    (host.state("other") / "layers").mkdir(parents=True)
    target = host.state("other") / "layers/1"
    host.stackfs("unpack", target, stdin=tar)
    assert whiteout.COVERS not in os.listxattr(target)
    other = host.mount("other")
    expected = {path: one[1] for path, one in seen(root).items() if path != b"."}
    expected.pop(b"./unsealed")
    (root / "back").write_text("again")
    found = {path: one[1] for path, one in seen(other).items() if path != b"."}
    found.pop(b"./back")
    assert found == expected
