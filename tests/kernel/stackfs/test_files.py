"""What programs see of files in a stack, and what is written to its layers."""

import errno
import mmap
import os
import stat
import subprocess

import pytest

from stackfs import abi, mounts
from stackfs.layers import whiteout

pytestmark = pytest.mark.needs("root", "fuse")


def code(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except OSError as e:
        return errno.errorcode[e.errno]
    return None


def names(top):
    """Paths below *top*; a whiteout as `-PATH`, an opaque directory as `PATH/!`."""
    found = set()
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            shown = os.path.relpath(path, top)
            at = os.lstat(path)
            if whiteout.is_whiteout(at):
                shown = f"-{shown}"
            elif stat.S_ISDIR(at.st_mode) and whiteout.OPAQUE in os.listxattr(path):
                shown = f"{shown}/!"
            found.add(shown)
    return found


def test_what_deletions_leave_in_the_upper_layer(host):
    for path in ("kept/x", "gone/x", "made/x", "moved/x"):
        (host.lower / path).parent.mkdir()
        (host.lower / path).write_text(path)
    (host.lower / "file").write_text("")
    root = host.mount()
    os.unlink(root / "file")
    os.unlink(root / "gone/x")
    os.rmdir(root / "gone")
    os.unlink(root / "made/x")
    os.rmdir(root / "made")
    os.mkdir(root / "made")
    os.rename(root / "moved", root / "there")
    upper = host.state() / "upper"
    assert names(upper) == {"-file", "-gone", "made/!", "-moved", "there"}
    assert os.listdir(root / "made") == []
    (root / "file").mkdir()
    assert names(upper) >= {"file/!"}
    assert sorted(os.listdir(root)) == ["file", "kept", "made", "there"]
    os.rmdir(root / "file")
    os.rename(root / "there/x", root / "file")
    assert names(upper) == {"file", "-gone", "made/!", "-moved", "there", "-there/x"}


def test_layers_of_the_kernels_overlayfs_are_understood(host):
    """Lower layers, top first: the upper directory of a kernel overlay, and its base."""
    base, top = host.lower, host.prefix / "top"
    for path in ("a", "d/x", "o/x"):
        (base / path).parent.mkdir(exist_ok=True)
        (base / path).write_text("base")
    for name in ("top", "kernel-work", "merged"):
        (host.prefix / name).mkdir()
    script = (
        'mount -t overlay o -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4" && cd "$4" && '
        'rm a d/x && rm -r o && mkdir o && touch o/new && cd / && umount "$4"'
    )
    places = [base, top, host.prefix / "kernel-work", host.prefix / "merged"]
    host.run("sh", "-ec", script, "sh", *map(os.fspath, places))
    host.stackfs("mount", "pod", "--lower", top, "--lower", base)
    root = host.root()
    assert sorted(os.listdir(root)) == ["d", "o"]
    assert os.listdir(root / "d") == []
    assert os.listdir(root / "o") == ["new"]


def test_our_layers_are_understood_by_the_kernels_overlayfs(host):
    for path in ("a", "d/x", "o/x"):
        (host.lower / path).parent.mkdir(exist_ok=True)
        (host.lower / path).write_text("base")
    root = host.mount()
    os.unlink(root / "a")
    os.unlink(root / "d/x")
    os.unlink(root / "o/x")
    os.rmdir(root / "o")
    os.mkdir(root / "o")
    (root / "new").write_text("n")
    host.stackfs("umount", "pod")
    merged = host.prefix / "merged"
    merged.mkdir()
    options = f"lowerdir={host.state() / 'upper'}:{host.lower}"
    host.run("mount", "-t", "overlay", "o", "-o", options, merged)
    at = host.seen(merged)
    assert sorted(os.listdir(at)) == ["d", "new", "o"]
    assert os.listdir(at / "d") == os.listdir(at / "o") == []
    host.run("umount", merged)


def test_whiteout_attributes_are_understood(host):
    top = host.prefix / "top"
    top.mkdir()
    for name in ("a", "b"):
        (host.lower / name).write_text("")
        (top / name).write_text("")
    os.setxattr(top, whiteout.OPAQUE, b"x")
    os.setxattr(top / "a", whiteout.WHITEOUT, b"y")
    host.stackfs("mount", "pod", "--lower", top, "--lower", host.lower)
    assert os.listdir(host.root()) == ["b"]


def test_programs_do_not_meddle_with_the_layers(host):
    (host.lower / "f").write_text("")
    root = host.mount()
    os.chmod(root / "f", 0o600)
    for name in ("trusted.overlay.opaque", "trusted.stackfs.ino", "trusted.overlay.new"):
        assert code(os.setxattr, root / "f", name, b"y") == "EPERM"
        assert code(os.getxattr, root / "f", name) == "ENODATA"
        assert code(os.removexattr, root / "f", name) == "EPERM"
    assert os.listxattr(root / "f") == []
    assert code(os.mknod, root / "w", stat.S_IFCHR, os.makedev(0, 0)) == "EPERM"
    assert whiteout.NUMBER in os.listxattr(host.state() / "upper/f")


def test_names(host):
    root = host.mount()
    longest = b"\xff\n" + b"x" * 253
    top = os.fsencode(root)
    with open(top + b"/" + longest, "wb"):
        pass
    assert os.listdir(top) == [longest]
    assert code(os.stat, top + b"/" + longest + b"x") == "ENAMETOOLONG"
    assert code(os.mkdir, top + b"/" + longest + b"x") == "ENAMETOOLONG"
    assert os.statvfs(root).f_namemax == 255
    assert os.statvfs(root).f_blocks == os.statvfs(host.state()).f_blocks


def test_open_files_without_a_name(host):
    (host.lower / "low").write_text("lower")
    root = host.mount()
    (root / "up").write_text("upper")
    fds = [os.open(root / name, os.O_RDWR) for name in ("up", "low")]
    reader = os.open(root / "low", os.O_RDONLY)
    for name in ("up", "low"):
        os.unlink(root / name)
    for fd in fds:
        assert os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"X", 0)
        os.fchmod(fd, 0o604)
        os.fsync(fd)
        assert os.pread(fd, 9, 0) in (b"Xpper", b"Xower")
        assert os.fstat(fd).st_mode & 0o777 == 0o604
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        assert os.pwrite(again, b"Y", 1) == 1
        assert os.pread(fd, 2, 0) == b"XY"
        os.close(again)
        os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
        os.fchmod(fd, 0o600)
        at = os.fstat(fd)
        assert (at.st_atime_ns, at.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert os.pread(reader, 9, 0) == b"XYwer"
    for fd in (*fds, reader):
        os.close(fd)
    assert os.listdir(root) == []
    assert os.listdir(host.state() / "work") == []


def test_removed_directory_in_use(host):
    (host.lower / "low").mkdir()
    root = host.mount()
    (root / "up").mkdir()
    for name in ("up", "low"):
        fd = os.open(root / name, os.O_RDONLY)
        os.rmdir(root / name)
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
        assert code(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == "ENOENT"
        os.close(fd)


def test_readers_and_mappings_see_later_writes(host):
    (host.lower / "f").write_bytes(b"a" * 8192)
    root = host.mount()
    reader = os.open(root / "f", os.O_RDONLY)
    with mmap.mmap(reader, 8192, prot=mmap.PROT_READ) as mapped:
        assert mapped[0] == ord("a")
        writer = os.open(root / "f", os.O_RDWR)
        with mmap.mmap(writer, 8192) as shared:
            shared[0] = ord("b")
            shared.flush()
        os.pwrite(writer, b"c", 5000)
        assert mapped[0] == ord("b")
        assert mapped[5000] == ord("c")
        assert os.pread(reader, 1, 5000) == b"c"
        os.close(writer)
    os.close(reader)
    assert (host.state() / "upper/f").stat().st_size == 8192


@pytest.mark.slow
def test_listing_while_names_come_and_go(host):
    """Every name that is there all the time is told once, whatever else happens."""
    for number in range(2000):
        (host.lower / f"low{number}").write_text("")
    root = host.mount()
    for number in range(2000):
        (root / f"up{number}").touch()
    seen = []
    with os.scandir(root) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) == 100:
                for number in range(0, 2000, 2):
                    os.unlink(root / f"low{number}")
                    os.rename(root / f"up{number}", root / f"new{number}")
    assert len(seen) == len(set(seen))
    stayed = {f"{kind}{number}" for kind in ("low", "up") for number in range(1, 2000, 2)}
    assert stayed <= set(seen)
    after = {*stayed, *(f"new{number}" for number in range(0, 2000, 2))}
    assert set(os.listdir(root)) == after
    assert {".", ".."} <= set(host.run("ls", "-a", root).stdout.decode().split())


def test_new_files_belong_to_their_makers(host):
    (host.lower / "d").mkdir(mode=0o777)
    os.chmod(host.lower / "d", 0o2777)
    os.chown(host.lower / "d", 0, 99)
    (host.lower / "d/whited").write_text("")
    root = host.mount()
    os.chmod(root, 0o777)
    script = 'cd "$0" && touch f d/f && mkdir d/d && ln -s x l && rm -f d/whited && touch d/whited'
    user = ["setpriv", "--reuid=11", "--regid=22", "--clear-groups"]
    os.chmod(host.prefix / "autopod/pod", 0o755)
    done = host.run(
        "sh",
        "-c",
        'exec 3<"$1"; shift; exec "$@" /proc/self/fd/3',
        "sh",
        host.prefix / "autopod/pod/root",
        *user,
        "sh",
        "-ec",
        script,
    )
    assert done.returncode == 0
    owners = {
        path: (os.lstat(root / path).st_uid, os.lstat(root / path).st_gid)
        for path in ("f", "l", "d/f", "d/d", "d/whited")
    }
    expected = {"f": (11, 22), "l": (11, 22)}
    assert owners == {"d/f": (11, 99), "d/d": (11, 99), "d/whited": (11, 99), **expected}
    assert os.stat(root / "d/d").st_mode & stat.S_ISGID


def test_default_acl_reaches_what_replaces_a_whiteout(host):
    (host.lower / "d").mkdir()
    (host.lower / "d/f").write_text("")
    host.run("setfacl", "-d", "-m", "u:5:rw", host.lower / "d")
    root = host.mount()
    os.unlink(root / "d/f")
    (root / "d/f").write_text("")
    (root / "d/g").write_text("")
    acls = [host.run("getfacl", "-pcn", root / "d" / name).stdout for name in "fg"]
    assert acls[0] == acls[1]
    assert b"user:5:rw" in acls[0]


def test_rename_flags(host):
    (host.lower / "a").write_text("a")
    (host.lower / "d").mkdir()
    (host.lower / "d/x").write_text("x")
    root = host.mount()

    def rename(old, new, flags):
        abi.renameat2(-100, os.fsencode(root / old), -100, os.fsencode(root / new), flags)

    assert code(rename, "a", "d", abi.RENAME_NOREPLACE) == "EEXIST"
    assert code(rename, "a", "b", abi.RENAME_WHITEOUT) == "EINVAL"
    rename("a", "d", abi.RENAME_EXCHANGE)
    assert (root / "a/x").read_text() == "x"
    assert (root / "d").read_text() == "a"
    host.kill_all()
    host.stackfs("mount", "pod")
    assert os.listdir(root / "a") == ["x"]
    assert (root / "d").read_text() == "a"


def test_times_are_those_that_programs_saw(host):
    """The kernel keeps the times of files that are written to: what is on disk must be the same."""
    root = host.mount()
    seen = {}
    for number in range(30):
        path = root / f"f{number}"
        path.write_text("made and written within one tick of the clock")
        if number % 3 == 1:
            with path.open("a") as file:
                file.write("+")
        if number % 3 == 2:
            os.utime(path, ns=(1, 2))
        seen[path] = os.stat(path).st_mtime_ns
    with (root / "f0").open("a") as file:
        file.write("written later")
        file.flush()
        assert os.stat(root / "f0").st_mtime_ns >= seen[root / "f0"]
    seen[root / "f0"] = os.stat(root / "f0").st_mtime_ns
    mounts.drop_unused(host.seen(host.prefix / "autopod/pod"))
    assert {path: os.stat(path).st_mtime_ns for path in seen} == seen


def test_a_default_acl_takes_the_place_of_the_umask(host):
    root = host.mount()
    for name, acl in (("plain", False), ("with", True)):
        (root / name).mkdir()
        if acl:
            subprocess.run(["setfacl", "-d", "-m", "u::rwx,g::rwx,o::rx", root / name], check=True)
    before = os.umask(0o077)
    try:
        for name in ("plain", "with"):
            (root / name / "file").touch()
            (root / name / "dir").mkdir()
    finally:
        os.umask(before)
    modes = {
        f"{name}/{entry}": os.stat(root / name / entry).st_mode & 0o777
        for name in ("plain", "with")
        for entry in ("file", "dir")
    }
    assert modes == {
        "plain/file": 0o600,
        "plain/dir": 0o700,
        "with/file": 0o664,
        "with/dir": 0o775,
    }


@pytest.mark.parametrize("uid", [0, 65534])
def test_set_id_bits_go_when_others_write(host, uid):
    root = host.mount()
    how = {
        "write": "exec 1<>{}; echo x",
        "truncate": "exec 1<>{}; python3 -c 'import os; os.ftruncate(1, 1)'",
        "open": ": > {}",
        "chown": "chgrp 65534 {}",
    }
    for name in how:
        (root / name).write_text("before")
        os.chown(root / name, uid, 65534)
        os.chmod(root / name, 0o6777)
    fd = os.open(root, os.O_RDONLY)
    names = [command.format(name) for name, command in how.items()]
    argv = ["setpriv", f"--reuid={uid}", "--regid=65534", "--clear-groups", "sh", "-c"]
    enter = f"cd /proc/self/fd/{fd} && " + " && ".join(f"({one})" for one in names)
    try:
        host.run(*argv, enter, pass_fds=[fd])
    finally:
        os.close(fd)
    kept = {name: bool(os.stat(root / name).st_mode & 0o6000) for name in how}
    assert kept == {"write": not uid, "truncate": not uid, "open": not uid, "chown": False}
