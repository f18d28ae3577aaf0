"""Snapshots: sealing the upper layer under programs that have files open."""

import contextlib
import hashlib
import json
import os
import threading

import pytest

from stackfs import abi
from stackfs.layers import whiteout

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "fuse")


def digest(top):
    """Contents and names of a layer on disk."""
    total = hashlib.sha256()
    for directory, names, files in sorted(os.walk(top)):
        total.update(repr((directory, sorted(names))).encode())
        for name in sorted(files):
            path = os.path.join(directory, name)
            total.update(name.encode())
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    total.update(file.read())
    return total.hexdigest()


def diff(host, *arguments):
    return json.loads(host.stackfs("diff", "pod", "--json", *arguments).stdout)


def seen(host, *arguments):
    return [f"{change['kind']} {change['path']}" for change in diff(host, *arguments)]


@pytest.mark.slow
def test_snapshot_seals_and_goes_on(host):
    (host.lower / "base").write_text("base")
    root = host.mount()
    (root / "one").write_text("1")
    os.unlink(root / "base")
    layer = json.loads(host.stackfs("snapshot", "pod", "--json").stdout)
    assert layer["path"] == os.fspath(host.state() / "layers/1")
    assert len(layer["id"]) == 32
    assert os.getxattr(layer["path"], whiteout.LAYER_ID).decode() == layer["id"]
    sealed = digest(layer["path"])
    assert host.request("status")["upper_empty"]
    with open(root / "one", "a") as file:
        file.write("+")
    (root / "two").write_text("2")
    second = host.request("snapshot")
    assert [at["path"] for at in second["layers"]] == [
        os.fspath(host.state() / "layers/2"),
        os.fspath(host.state() / "layers/1"),
    ]
    os.unlink(root / "one")
    (root / "base").write_text("new")
    assert digest(layer["path"]) == sealed
    host.kill_all()
    host.stackfs("mount", "pod")
    assert sorted(os.listdir(root)) == ["base", "two"]
    assert [at["id"] for at in host.request("status")["layers"]] == [
        second["layer"]["id"],
        layer["id"],
    ]
    assert seen(host) == ["C /base", "A /two"]


@pytest.mark.slow
def test_the_size_of_the_upper_layer_does_not_matter(host):
    """20,000 files are sealed where they are, while a program writes."""
    upper = host.state() / "upper"
    for directory in range(20):
        (upper / f"d{directory}").mkdir(parents=True)
        for number in range(1000):
            (upper / f"d{directory}/{number}").write_bytes(b"some bytes")
    before = os.stat(upper / "d7").st_ino
    root = host.mount()
    with writing(root / "log"):
        host.request("snapshot")
    layer = host.state() / "layers/1"
    assert len(os.listdir(layer)) == 21
    assert os.stat(layer / "d7").st_ino == before
    assert set(os.listdir(root / "d7")) == set(map(str, range(1000)))


@contextlib.contextmanager
def writing(path):
    """A program writes and writes."""
    done = threading.Event()

    def write():
        with open(path, "ab", buffering=0) as file:
            while not done.is_set():
                file.write(b"x" * 100)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(path.exists)
        yield
    finally:
        done.set()
        writer.join()


def test_a_snapshot_holds_what_was_written_before(host):
    """Also what the kernel had not handed to the daemon yet."""
    root = host.mount()
    with open(root / "open", "wb", buffering=0) as file:
        file.write(b"x" * 3_000_000)
        layer = json.loads(host.stackfs("snapshot", "pod", "--json").stdout)
        file.write(b"after")
        assert os.stat(f"{layer['path']}/open").st_size == 3_000_000
    assert layer["stopped_ms"] > 0
    assert os.stat(root / "open").st_size == 3_000_005


@pytest.mark.slow
def test_differences_have_sizes_and_begin_at_any_snapshot(host):
    """Mounted or not, against the lower layers or a snapshot by number or id."""
    for name in ("gone", "grows", "turns"):
        (host.lower / name).write_text(name)
    (host.lower / "d").mkdir()
    root = host.mount()
    (root / "grows").write_text("a longer text")
    (root / "d/new").write_text("12345")
    layer = host.request("snapshot")["layer"]
    os.unlink(root / "gone")
    os.unlink(root / "turns")
    (root / "turns").mkdir()
    os.unlink(root / "d/new")
    (root / os.fsdecode(b"\xff")).write_text("1")

    def row(kind, path, size, before):
        return {"kind": kind, "path": path, "size": size, "before": before}

    since_lower = [
        row("C", "/d", 0, 0),
        row("D", "/gone", None, 4),
        row("C", "/grows", 13, 5),
        row("D", "/turns", None, 5),
        row("A", "/turns", 0, None),
        row("A", "/\udcff", 1, None),
    ]
    since_snapshot = [
        row("C", "/d", 0, 0),
        row("D", "/d/new", None, 5),
        *(change for change in since_lower if change["path"] not in ("/d", "/grows")),
    ]
    for mounted in (True, False):
        if not mounted:
            host.stackfs("umount", "pod")
        assert diff(host) == since_lower
        assert diff(host, "--from", "1") == diff(host, "--from", layer["id"]) == since_snapshot
        shown = host.stackfs("diff", "pod", "--from", "1").stdout.splitlines()
        assert shown[1] == b"D            5 /d/new"
        assert shown[-1] == b"A            1 /\\udcff", "a name commands no terminal"
        refused = host.stackfs("diff", "pod", "--from", "2", check=False)
        assert b"no snapshot '2'" in refused.stderr


def test_open_files_go_on_in_the_fresh_layer(host):
    """What is written through descriptors opened before is in no sealed layer."""
    (host.lower / "d").mkdir()
    root = host.mount()
    (root / "d/linked").write_text("linked")
    os.link(root / "d/linked", root / "other")
    files = {name: os.open(root / name, os.O_RDWR | os.O_CREAT) for name in ("d/a", "d/linked")}
    gone = os.open(root / "gone", os.O_RDWR | os.O_CREAT)
    os.write(gone, b"unlinked")
    os.unlink(root / "gone")
    os.write(files["d/a"], b"before")
    numbers = {name: os.fstat(fd).st_ino for name, fd in files.items()}
    reader = os.open(root / "d/a", os.O_RDONLY)
    os.rename(root / "other", root / "d/other")
    os.unlink(root / "d/other")  # what is left is not the name that the inode was last known by
    abi.syncfs(files["d/a"])
    layer = host.request("snapshot")["layer"]["path"]
    sealed = digest(layer)
    for name, fd in files.items():
        assert os.pwrite(fd, b"AFTER", 3) == 5
        os.fsync(fd)
        assert os.fstat(fd).st_ino == numbers[name]
    os.pwrite(gone, b"still", 0)
    os.fsync(gone)
    assert digest(layer) == sealed
    assert os.pread(reader, 99, 0) == b"befAFTER"
    assert (root / "d/a").read_bytes() == b"befAFTER"
    assert (host.state() / "upper/d/a").read_bytes() == b"befAFTER"
    assert (root / "d/linked").read_bytes() == b"linAFTER"
    assert os.pread(gone, 99, 0) == b"stillked"
    for fd in (*files.values(), gone, reader):
        os.close(fd)
    assert os.stat(root / "d/a").st_ino == numbers["d/a"]


def test_directories_made_before_a_snapshot_can_be_renamed(host):
    root = host.mount()
    (root / "d/e").mkdir(parents=True)
    (root / "d/e/f").write_text("f")
    host.request("snapshot")
    number = os.stat(root / "d/e/f").st_ino
    os.rename(root / "d", root / "moved")
    assert os.listdir(root) == ["moved"]
    assert (root / "moved/e/f").read_text() == "f"
    assert os.stat(root / "moved/e/f").st_ino == number
    host.kill_all()
    host.stackfs("mount", "pod")
    assert os.listdir(root) == ["moved"]
    assert os.stat(root / "moved/e/f").st_ino == number


def test_sealed_layers_do_not_change_under_writers(host):
    """Each writer appends numbered lines; a sealed layer never changes, and nothing is lost."""
    root = host.mount()
    stop = threading.Event()
    written = [0] * 4

    def write(index):
        with open(root / f"log{index}", "a", buffering=1) as file:
            while not stop.is_set():
                written[index] += 1
                file.write(f"{written[index]}\n")

    writers = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for writer in writers:
        writer.start()
    sealed = {}
    for _ in range(10):
        layer = host.request("snapshot")["layer"]["path"]
        sealed[layer] = digest(layer)
    stop.set()
    for writer in writers:
        writer.join()
    assert {layer: digest(layer) for layer in sealed} == sealed
    for index, count in enumerate(written):
        lines = (root / f"log{index}").read_text().splitlines()
        assert lines == [str(number) for number in range(1, count + 1)]


@pytest.mark.slow
def test_layers_move_to_another_stack(host):
    """Packed, unpacked elsewhere and mounted, a pod's files are the same, numbers included."""
    for path in ("a", "gone", "d/x"):
        (host.lower / path).parent.mkdir(exist_ok=True)
        (host.lower / path).write_text(path)
    root = host.mount()
    (root / "d/new").write_text("new")
    os.link(root / "d/new", root / "linked")
    os.chmod(root / "a", 0o600)
    os.unlink(root / "gone")
    host.request("snapshot")
    with open(root / "d/new", "a") as file:
        file.write("er")
    host.request("snapshot")

    def seen(at):
        return {
            path: (os.stat(at / path).st_ino, os.stat(at / path).st_nlink)
            for path in ("a", "d", "d/x", "d/new", "linked")
        }

    (host.state("other") / "layers").mkdir(parents=True)
    for number in ("1", "2"):
        tar = host.stackfs("pack", host.state() / "layers" / number).stdout
        target = host.state("other") / "layers" / number
        host.stackfs("unpack", target, stdin=tar)
    other = host.mount("other")
    assert seen(other) == seen(root)
    assert sorted(os.listdir(other)) == sorted(os.listdir(root))
    assert (other / "linked").read_text() == "newer"
    ids = [[at["id"] for at in host.request("status", pod)["layers"]] for pod in ("pod", "other")]
    assert ids[0] == ids[1]


def test_status_identifies_the_lower_layers(host):
    (host.lower / "f").write_text("f")
    host.mount()
    assert host.request("status")["lower"][0]["identity"] is None
    (found,) = host.request("status", identify=True)["lower"]
    assert found["path"] == os.fspath(host.lower)
    expected = host.stackfs("identity", host.lower).stdout.decode().strip()
    assert found["identity"] == expected
    assert host.request("status")["lower"][0]["identity"] == expected
