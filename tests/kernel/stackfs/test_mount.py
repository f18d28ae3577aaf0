"""The commands around a mount, and what becomes of its files."""

import errno
import json
import os
import subprocess
import threading

import pytest

from stackfs import cli, history, mounting

from .conftest import STACKFS, fill, wait_until

pytestmark = pytest.mark.needs("root", "fuse")


def test_root_answers_when_mount_returns(host):
    fill(host.lower)
    root = host.mount()
    assert (root / "etc/motd").read_text() == "hello\n"
    assert os.listdir(root.parent) == ["root"]
    (one,) = host.list()
    assert one["mounted"]
    assert one["lower"] == [os.fspath(host.lower)]
    assert one["upper"] == os.fspath(host.state() / "upper")
    assert one["root"] == os.fspath(host.prefix / "autopod/pod/root")
    host.stackfs("umount", "pod")
    assert host.list() == []


def test_daemon_holds_nothing_of_its_caller(host):
    """A caller that waits for the end of a pipe is not kept waiting."""
    fill(host.lower)
    reader, writer = os.pipe()
    host.stackfs("mount", "pod", "--lower", host.lower, pass_fds=(writer,))
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    pid = host.daemon()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == host.request("status")["holder"] != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


@pytest.mark.slow
def test_where_sysfs_is_read_only(host):
    """As in a container: the kernel keeps FUSE's own settings."""
    host.run("mount", "-o", "remount,bind,ro", "/sys")
    root = host.mount()
    (root / "file").write_text("works")
    assert "going on with the kernel's own settings" in host.log()


def test_errors_say_what_to_do(host):
    fill(host.lower)

    def failing(*arguments, status=1):
        done = host.stackfs(*arguments, check=False)
        assert done.returncode == status
        first, *rest = done.stderr.decode().splitlines()
        assert first.startswith("stackfs: error: ")
        assert all(line.startswith("stackfs: hint: ") for line in rest)
        return first

    assert "has not been mounted" in failing("mount", "pod")
    assert "no such directory" in failing("mount", "pod", "--lower", host.lower / "missing")
    assert "neither a directory nor" in failing("mount", "pod", "--lower", host.lower / "etc/motd")
    assert "is not mounted" in failing("umount", "pod")
    assert "is not mounted" in failing("snapshot", "pod")
    assert "has not been mounted" in failing("check", "pod")
    hint = b"stackfs: hint: stackfs mount pod --lower DIR mounts it\n"
    assert hint in host.stackfs("diff", "pod", check=False).stderr
    (host.state() / "stack.json").write_text('{"lower": 1}')
    assert "cannot be read" in failing("mount", "pod")
    (host.state() / "stack.json").unlink()
    assert "cannot name a pod" in failing("mount", "Not A Pod", status=2)
    assert "takes the place" in failing("mount", "pod", "--spec", "-", "--lower", "x", status=2)
    assert "specification" in failing("mount", "pod", "--spec", "-", status=1)
    host.mount()
    assert "mounted already" in failing("mount", "pod", "--lower", host.lower)


def test_spec_from_standard_input(host):
    fill(host.lower)
    upper = host.prefix / "mine"
    spec = {"lower": [os.fspath(host.lower)], "upper": os.fspath(upper)}
    host.stackfs("mount", "pod", "--spec", "-", stdin=json.dumps(spec).encode())
    (host.root() / "new").write_text("x")
    assert (upper / "new").read_text() == "x"
    host.stackfs("snapshot", "pod")
    assert (host.prefix / "mine.layers/1/new").read_text() == "x"
    assert (host.root() / "new").read_text() == "x"


def test_one_upper_directory_has_one_stack(host):
    fill(host.lower)
    host.mount("one", "--upper", host.prefix / "shared")
    arguments = ("mount", "two", "--lower", host.lower, "--upper", host.prefix / "shared")
    refused = host.stackfs(*arguments, check=False)
    assert b"used by another stack" in refused.stderr
    host.stackfs("umount", "one")
    host.stackfs(*arguments)


def test_lower_by_descriptor_below_the_mount(host):
    """What is mounted at the pod's root before becomes the lower layer, and is covered."""
    fill(host.lower)
    inner = host.prefix / "autopod/pod/root"
    inner.mkdir(parents=True)
    host.run("mount", "--bind", host.lower, inner)
    fd = os.open(host.seen(inner), os.O_PATH | os.O_DIRECTORY)
    try:
        host.stackfs("mount", "pod", "--lower", f"/proc/self/fd/{fd}", pass_fds=(fd,))
    finally:
        os.close(fd)
    assert (host.root() / "etc/motd").read_text() == "hello\n"
    (host.root() / "etc/motd").write_text("changed\n")
    assert (host.lower / "etc/motd").read_text() == "hello\n"
    host.kill_all()
    host.stackfs("mount", "pod")  # the bind mount is found again below the stale one
    assert (host.root() / "etc/motd").read_text() == "changed\n"


def test_killed_daemon_loses_nothing_written(host):
    fill(host.lower)
    root = host.mount()
    with open(root / "etc/motd", "a") as file:
        file.write("more\n")
        file.flush()
        os.fsync(file.fileno())
    numbers = os.stat(root / "etc/motd").st_ino, os.stat(root / "etc").st_ino
    (root / "gone").mkdir()
    (root / "gone").rmdir()
    host.kill_all()
    assert [one["mounted"] for one in host.list()] == [False]
    host.stackfs("mount", "pod")
    assert (root / "etc/motd").read_text() == "hello\nmore\n"
    assert (os.stat(root / "etc/motd").st_ino, os.stat(root / "etc").st_ino) == numbers
    assert os.listdir(root) == ["etc"]


def test_umount_after_a_killed_daemon_cleans_up(host):
    fill(host.lower)
    host.mount()
    host.kill_all()
    host.stackfs("umount", "pod")
    assert host.list() == []
    assert os.listdir(host.seen(host.prefix / "autopod/pod")) == []


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 40, 77])
def test_daemon_killed_while_it_copies_up(host, after):
    """Every file is the old one or the whole copy."""
    for number in range(100):
        (host.lower / str(number)).write_text(f"contents of {number}" * 50)
    root = host.mount()
    changed = []

    def change():
        for number in range(100):
            try:
                os.chmod(root / str(number), 0o600)
            except OSError:
                return
            changed.append(number)

    changer = threading.Thread(target=change)
    changer.start()
    wait_until(lambda: len(changed) >= after)
    host.kill_all()
    changer.join()
    host.stackfs("mount", "pod")
    for number in range(100):
        assert (root / str(number)).read_text() == f"contents of {number}" * 50
        if number in changed:
            assert os.stat(root / str(number)).st_mode & 0o777 == 0o600
    assert os.listdir(host.state() / "work") == []


def test_foreground(host):
    fill(host.lower)
    with host.spawn(
        STACKFS,
        "mount",
        "pod",
        "--lower",
        os.fspath(host.lower),
        "--foreground",
        stderr=subprocess.PIPE,
    ) as daemon:
        wait_until(lambda: any(one["mounted"] for one in host.list()))
        assert (host.root() / "etc/motd").exists()
        host.stackfs("umount", "pod")
        assert daemon.wait(60) == 0


def test_lower_that_contains_the_mount(host):
    """The daemon does not walk into its own mount, even where a lower directory holds it."""
    fill(host.lower)
    host.stackfs("mount", "pod", "--lower", host.prefix)
    inside = host.root() / "autopod/pod"
    assert os.listdir(inside) == []
    (inside / "x").write_text("written to the upper layer")
    assert os.listdir(host.seen(host.prefix / "autopod/pod")) == ["root"]
    host.run("find", host.prefix / "autopod/pod/root", "-xdev", stdin=b"")


def test_half_made_files_are_removed(host):
    fill(host.lower)
    host.mount()
    host.stackfs("umount", "pod")
    work = host.state() / "work"
    (work / "1").write_text("half")
    (work / "2").mkdir()
    (work / "2/x").write_text("")
    found = host.stackfs("check", "pod").stdout.decode()
    assert "'1'" in found
    assert "'2'" in found
    assert os.listdir(work) == []
    assert "no fault" in host.stackfs("check", "pod").stdout.decode()


@pytest.mark.slow
def test_interrupted_seal_is_mended(host):
    """Between its two renames there is no upper directory; the next mount makes one."""
    fill(host.lower)
    root = host.mount()
    (root / "new").write_text("x")
    os.chmod(root, 0o711)
    host.stackfs("snapshot", "pod")
    host.stackfs("umount", "pod")
    (host.state() / "upper").rmdir()
    host.stackfs("mount", "pod")
    assert (root / "new").read_text() == "x"
    assert os.stat(root).st_mode & 0o777 == 0o711
    (root / "later").write_text("y")
    host.stackfs("snapshot", "pod")
    assert sorted(os.listdir(host.state() / "layers")) == ["1", "2"]


def test_an_upper_directory_that_is_missing_is_not_made_again(host):
    """It is so where its disk is not mounted, or its name is misspelt: nothing is lost."""
    fill(host.lower)
    disk, upper = host.prefix / "disk", host.prefix / "disk/upper"
    disk.mkdir()
    (host.mount("pod", "--upper", upper) / "new").write_text("x")
    host.stackfs("umount", "pod")
    disk.rename(host.prefix / "elsewhere")
    disk.mkdir()
    for arguments in ([], ["--lower", host.lower, "--upper", upper], ["--upper", disk / "uper"]):
        refused = host.stackfs("mount", "pod", *arguments, check=False).stderr
        assert b"is missing, and pod was mounted before" in refused
        assert b"stackfs: hint: mount its disk, or " in refused
        assert os.listdir(disk) == []
    assert b"is missing" in host.stackfs("check", "pod", check=False).stdout
    disk.rmdir()
    (host.prefix / "elsewhere").rename(disk)
    host.stackfs("mount", "pod")
    assert (host.root() / "new").read_text() == "x"
    host.stackfs("umount", "pod")
    (disk / "other").mkdir()
    host.stackfs("mount", "pod", "--upper", disk / "other")
    assert not (host.root() / "new").exists()


def test_what_a_pod_writes_does_not_go_to_a_lower_layer(host):
    """The next snapshot would have moved it away."""
    fill(host.lower)
    below, link = host.prefix / "below", host.prefix / "link"
    (below / "base").mkdir(parents=True)
    link.symlink_to(host.lower)
    for lower, upper in ((host.lower, host.lower), (host.lower, link), (below / "base", below)):
        argv = ("mount", "pod", "--lower", lower, "--upper", upper)
        done = host.stackfs(*argv, check=False)
        assert done.returncode == 1
        assert done.stderr.decode() == (
            f"stackfs: error: the upper directory {upper} would change the lower layer {lower}\n"
            "stackfs: hint: give it another with --upper\n"
        )
    assert host.list() == []
    assert os.listdir(host.lower) == ["etc"]


def test_a_snapshot_on_a_full_disk_says_which(tmp_path, monkeypatch):
    """What writes out tells of errors that came meanwhile, without a name."""

    def full(fd):
        raise OSError(errno.ENOSPC, "syncfs: No space left on device")

    monkeypatch.setattr(history.abi, "syncfs", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device") as caught:
        history._sync(tmp_path)
    assert caught.value.filename == os.fspath(tmp_path)


def test_what_is_not_the_callers_is_told_so(prefix, capsys):
    assert cli.main(["list"]) == 0, "its modules are loaded while they can be"
    assert cli.main(["check", "pod"]) == 1
    assert "has not been mounted" in capsys.readouterr().err
    state, run = prefix / "var/lib/autopod/pod", prefix / "run/autopod/pod"
    for path in (state, run):
        path.mkdir(parents=True)
    prefix.chmod(0o755)
    for path in (state, run):
        path.chmod(0o700)
    os.seteuid(65534)
    try:
        for argv, what in (
            (["list"], run / "stackfs.json"),
            (["stats", "pod"], run / "stackfs.sock"),
            (["snapshot", "pod"], run / "stackfs.sock"),
            (["check", "pod"], state / "stack.json"),
        ):
            assert cli.main(argv) == 1
            assert capsys.readouterr() == (
                "",
                f"stackfs: error: Permission denied: {what}\n"
                "stackfs: hint: pods are root's to work on\n",
            )
    finally:
        os.seteuid(0)


def test_a_reader_that_goes_and_ctrl_c_are_no_errors(host, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with host.spawn(STACKFS, "list", "--json", stdout=write, stderr=subprocess.PIPE) as process:
        assert (process.stderr.read(), process.wait()) == (b"", 1)
    os.close(write)

    def interrupted(places):
        raise KeyboardInterrupt

    monkeypatch.setattr(mounting, "stacks", interrupted)
    assert cli.main(["list"]) == 130
    assert capfd.readouterr() == ("", "")
