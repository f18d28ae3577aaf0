"""A stack whose ids are shifted, seen by the root of a user namespace and by the host's."""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import traceback
from pathlib import Path

import pytest

BASE = 1 << 30
CLONE_NEWUSER = 0x10000000
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep


@pytest.fixture
def root(host):
    (host.lower / "etc").mkdir()
    (host.lower / "etc/shadow").write_bytes(b"secret")
    (host.lower / "etc/shadow").chmod(0o640)
    os.chown(host.lower / "etc/shadow", 0, 42)
    (host.lower / "www").mkdir()
    os.chown(host.lower / "www", 33, 33)
    (host.lower / "far").write_bytes(b"far away")
    os.chown(host.lower / "far", 70000, 70000)
    return host.mount("pod", "--shift", str(BASE))


def inside(root, action, uid=0, gid=0, groups=()):
    """Do something in the root, in a user namespace whose ids begin at BASE; return the errno.

    The process is there before it loses the right to pass the barrier.
    """
    told, tell = os.pipe()
    mapped, go = os.pipe()
    pid = os.fork()
    if not pid:
        status = 255
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            namespace, path = root.parts[:3], Path("/", *root.parts[4:])
            with open(Path(*namespace, "ns/mnt")) as mounts:
                assert libc.setns(mounts.fileno(), 0) == 0
            os.chdir(path)
            assert libc.unshare(CLONE_NEWUSER) == 0
            os.write(tell, b"u")
            os.read(mapped, 1)
            os.setgroups(list(groups))
            os.setresgid(gid, gid, gid)
            os.setresuid(0, 0, 0)
            os.setresuid(uid, uid, uid)  # capabilities go when root becomes another user
            try:
                action()
                status = 0
            except OSError as e:
                status = e.errno
        except BaseException:  # noqa: BLE001 (all of a forked process)
            traceback.print_exc()
        finally:
            os._exit(status)
    os.read(told, 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(f"0 {BASE} 65536")
    os.write(go, b"m")
    for fd in (told, tell, mapped, go):
        os.close(fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status != 255, "the process failed: see its traceback"
    return status


def owner(path):
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def check(condition):
    if not condition:
        raise AssertionError


def test_files_keep_their_owners_on_disk_and_are_the_pod_s_above(host, root):
    assert owner(root / "etc/shadow") == (BASE, BASE + 42)
    assert owner(root / "www") == (BASE + 33, BASE + 33)

    def look():
        check(owner("etc/shadow") == (0, 42))
        check(owner("www") == (33, 33))
        check(Path("etc/shadow").read_bytes() == b"secret")
        check({e.name: e.stat().st_uid for e in os.scandir(".")}["www"] == 33)

    assert inside(root, look) == 0
    assert owner(host.lower / "etc/shadow") == (0, 42)


def test_modes_hold_for_the_namespace_s_users(root):
    def read():
        with open("etc/shadow", "rb"):
            pass

    assert inside(root, read, uid=1000, gid=1000) == errno.EACCES
    assert inside(root, read, uid=1000, gid=42) == 0
    assert inside(root, read, uid=1000, gid=1000, groups=[42]) == 0


def make_all():
    os.umask(0)
    os.mkdir("new")
    with open("new/file", "xb") as file:
        file.write(b"x")
    os.mkfifo("new/fifo")
    os.symlink("file", "new/link")
    os.link("new/file", "new/other")
    os.rename("new/file", "new/renamed")


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (33, 34)])
def test_what_is_made_belongs_to_its_maker(host, root, uid, gid):
    os.chmod(root, 0o777)
    assert inside(root, make_all, uid, gid) == 0
    for name in ("new", "new/fifo", "new/link", "new/other", "new/renamed"):
        assert owner(root / name) == (BASE + uid, BASE + gid), name
        assert owner(host.state() / "upper" / name) == (uid, gid), name
    assert os.stat(root / "new/other").st_ino == os.stat(root / "new/renamed").st_ino
    assert os.stat(root / "new/other").st_nlink == 2


def test_a_directory_with_set_group_id_passes_its_group_on(host, root):
    def make():
        os.chown("www", 33, 50)
        os.chmod("www", 0o2775)
        with open("www/page", "xb"):
            pass
        os.unlink("www/page")
        os.mkdir("www/page")

    assert inside(root, make) == 0
    assert owner(host.state() / "upper/www/page") == (0, 50)
    assert owner(root / "www/page") == (BASE, BASE + 50)


def test_a_whiteout_s_place_takes_the_same_group(host):
    (host.lower / "www").mkdir()
    (host.lower / "www/old").write_bytes(b"old")
    os.chown(host.lower / "www", 33, 50)
    (host.lower / "www").chmod(0o2775)
    root = host.mount("pod", "--shift", str(BASE))

    def replace():
        os.unlink("www/old")
        with open("www/old", "xb"):
            pass

    assert inside(root, replace, uid=33, gid=33) == 0
    assert owner(host.state() / "upper/www/old") == (33, 50)


def test_owners_change_within_the_namespace(host, root):
    def change():
        os.chown("etc/shadow", 7, 8)
        check(owner("etc/shadow") == (7, 8))

    assert inside(root, change) == 0
    assert owner(host.state() / "upper/etc/shadow") == (7, 8)
    assert inside(root, lambda: os.chown("etc/shadow", 70000, -1)) == errno.EINVAL
    with pytest.raises(OSError, match=os.strerror(errno.EOVERFLOW)):
        os.chown(root / "etc/shadow", 33, 33)
    os.chown(root / "etc/shadow", BASE + 33, BASE + 34)
    assert owner(host.state() / "upper/etc/shadow") == (33, 34)


def test_what_the_host_s_root_makes_is_the_pod_s_root_s(host, root):
    (root / "resolv.conf").write_text("nameserver 10.0.0.1\n")
    assert owner(root / "resolv.conf") == (BASE, BASE)
    assert owner(host.state() / "upper/resolv.conf") == (0, 0)


def test_the_host_s_users_make_nothing(root):
    os.chmod(root, 0o777)
    pid = os.fork()
    if not pid:
        try:
            os.chdir(root)
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            os.mkdir("mine")
        except OSError as e:
            os._exit(e.errno)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EOVERFLOW


def test_a_file_of_somebody_beyond_the_range_is_read_only(host, root):
    assert owner(root / "far") == (65534, 65534)

    def read():
        check(owner("far") == (65534, 65534))
        check(Path("far").read_bytes() == b"far away")

    def write():
        with open("far", "r+b"):
            pass

    assert inside(root, read) == 0
    assert inside(root, write) == errno.EACCES
    assert inside(root, lambda: os.chmod("far", 0o777)) == errno.EOVERFLOW
    assert inside(root, lambda: os.chown("far", 0, 0)) == errno.EPERM
    assert inside(root, lambda: os.unlink("far")) == errno.EOVERFLOW
    os.chown(root / "far", BASE, BASE)  # the host's root gives it to the pod
    assert inside(root, write) == 0
    assert owner(host.lower / "far") == (70000, 70000)
    assert owner(host.state() / "upper/far") == (0, 0)


def set_acl(path, *entries, name="system.posix_acl_access"):
    text = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, name, text)


def acl_of(path, name="system.posix_acl_access"):
    value = os.getxattr(path, name)
    return [e for e in struct.iter_unpack("<HHI", value[4:]) if e[0] in (2, 8)]


NONE = 0xFFFFFFFF
ACL = ((1, 6, NONE), (2, 4, 33), (4, 0, NONE), (8, 4, 60), (16, 4, NONE), (32, 0, NONE))


def test_acls_name_the_pod_s_users(host, root):
    def set_and_look():
        set_acl("etc/shadow", *ACL)
        check(acl_of("etc/shadow") == [(2, 4, 33), (8, 4, 60)])

    def read():
        with open("etc/shadow", "rb"):
            pass

    assert inside(root, set_and_look) == 0
    assert acl_of(root / "etc/shadow") == [(2, 4, BASE + 33), (8, 4, BASE + 60)]
    assert acl_of(host.state() / "upper/etc/shadow") == [(2, 4, 33), (8, 4, 60)]
    assert inside(root, read, uid=33, gid=99) == 0
    assert inside(root, read, uid=34, gid=60) == 0
    assert inside(root, read, uid=34, gid=99) == errno.EACCES


def test_default_acls_are_inherited(host, root):
    def make():
        set_acl("www", *ACL, name="system.posix_acl_default")
        with open("www/page", "xb"):
            pass
        check(acl_of("www/page") == [(2, 4, 33), (8, 4, 60)])

    assert inside(root, make) == 0
    assert acl_of(host.state() / "upper/www/page") == [(2, 4, 33), (8, 4, 60)]


def test_capabilities_of_a_file_are_the_pod_s(host, root):
    def set_and_look():
        with open("tool", "xb"):
            pass
        os.setxattr("tool", "security.capability", CAPABILITY)
        check(os.getxattr("tool", "security.capability") == CAPABILITY)

    assert inside(root, set_and_look) == 0
    assert os.getxattr(host.state() / "upper/tool", "security.capability") == CAPABILITY
    assert os.getxattr(root / "tool", "security.capability")[-4:] == struct.pack("<I", BASE)


def test_capabilities_work_when_the_file_is_executed(host):
    tool = host.lower / "capsh"
    tool.write_bytes(Path("/usr/bin/cat").read_bytes())
    tool.chmod(0o755)
    os.setxattr(tool, "security.capability", CAPABILITY)
    root = host.mount("pod", "--shift", str(BASE))

    def execute():
        said = subprocess.check_output(["./capsh", "/proc/self/status"], text=True)
        effective = next(line for line in said.splitlines() if line.startswith("CapEff"))
        check(int(effective.split()[1], 16) == 1 << 10)

    assert inside(root, execute, uid=1000, gid=1000) == 0


def set_id_file(root, mode):
    path = root / "tool"
    path.write_bytes(b"a program")
    path.chmod(mode)
    return path


def write():
    with open("tool", "r+b", buffering=0) as file:
        file.write(b"x")


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("change", [write, lambda: os.truncate("tool", 1)])
def test_a_write_drops_set_id_bits_also_root_s(root, change, uid):
    path = set_id_file(root, 0o6777)
    assert inside(root, change, uid, uid) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_root_sets_an_acl_without_being_in_the_group(root):
    os.chown(set_id_file(root, 0o2750), BASE + 33, BASE + 60)
    (root / "tool").chmod(0o2750)
    assert inside(root, lambda: set_acl("tool", *ACL)) == 0
    assert stat.S_IMODE((root / "tool").stat().st_mode) == 0o2640
    assert inside(root, lambda: set_acl("tool", *ACL), uid=33, gid=33) == 0
    assert stat.S_IMODE((root / "tool").stat().st_mode) == 0o640


def test_a_new_owner_drops_set_id_bits(root):
    path = set_id_file(root, 0o6755)
    assert inside(root, lambda: os.chown("tool", 7, 7)) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_set_user_id_programs_are_those_of_the_pod_s_users(host):
    tool = host.lower / "id"
    tool.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(tool, 33, 33)
    tool.chmod(0o4755)
    root = host.mount("pod", "--shift", str(BASE))

    def execute():
        check(subprocess.check_output(["./id", "-u"]) == b"33\n")

    assert inside(root, execute, uid=1000, gid=1000) == 0


def test_it_goes_on_when_the_daemon_is_killed(host, root):
    os.chmod(root, 0o777)
    with open(root / "kept", "xb") as file:
        os.chown(root / "kept", BASE + 7, BASE + 7)
        os.unlink(root / "kept")
        host.kill_daemon()
        assert os.fstat(file.fileno()).st_uid == BASE + 7
        os.fchown(file.fileno(), BASE + 8, -1)
        assert os.fstat(file.fileno()).st_uid == BASE + 8
    assert owner(root / "etc/shadow") == (BASE, BASE + 42)
    assert inside(root, make_all, uid=33, gid=34) == 0
    assert owner(host.state() / "upper/new/renamed") == (33, 34)


def test_it_is_kept_by_an_upgrade_and_until_the_next_mount(host, root):
    host.stackfs("upgrade", "pod")
    assert owner(root / "www") == (BASE + 33, BASE + 33)
    assert [one["shift"] for one in host.list()] == [BASE]
    assert f"shift {BASE}".encode() in host.stackfs("list").stdout
    assert host.request("status")["shift"] == BASE
    host.stackfs("umount", "pod")
    host.stackfs("mount", "pod")
    assert owner(root / "www") == (BASE + 33, BASE + 33)
    host.stackfs("umount", "pod")
    host.stackfs("mount", "pod", "--shift", "0")
    assert owner(root / "www") == (33, 33)
    host.stackfs("umount", "pod")
    spec = b'{"lower": ["%b"], "shift": %d}' % (os.fsencode(host.lower), BASE)
    host.stackfs("mount", "pod", "--spec", "-", stdin=spec)
    assert owner(root / "www") == (BASE + 33, BASE + 33)


@pytest.mark.parametrize("base", ["1", "-1", "65535", "4294967295"])
def test_a_base_that_cannot_be_is_refused(host, base):
    run = host.stackfs("mount", "pod", "--lower", host.lower, f"--shift={base}", check=False)
    assert run.returncode == 1
    assert run.stderr.startswith(b"stackfs: error: ids cannot be shifted by")
    assert b"stackfs: hint: by 65536 to 4294901759" in run.stderr


def test_layers_are_packed_as_they_are(host, root):
    assert inside(root, lambda: os.mkdir("www/new"), uid=33, gid=33) == 0
    host.stackfs("snapshot", "pod")
    assert owner(root / "www/new") == (BASE + 33, BASE + 33)
    tar = host.stackfs("pack", host.state() / "layers/1").stdout
    listing = subprocess.check_output(["tar", "tvf", "-", "--numeric-owner"], input=tar)
    assert b"33/33" in listing
    assert str(BASE).encode() not in listing
