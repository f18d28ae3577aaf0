"""What a write takes away from a file: set-id bits and capabilities."""

import os
import stat
import struct

import pytest

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+p


def as_nobody(action):
    """Do something as an unprivileged user, in a process of its own."""
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            action()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def write(path):
    with open(path, "r+b", buffering=0) as file:
        file.write(b"x")


def truncate(path):
    os.truncate(path, 1)


def open_truncated(path):
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("change", [write, truncate, open_truncated])
def test_a_write_drops_set_id_bits(host, change, below):
    root = host.mount() if not below else None
    made = (host.lower if below else root) / "tool"
    made.write_bytes(b"a program")
    made.chmod(0o6777)
    root = root or host.mount()
    path = root / "tool"
    assert path.stat().st_mode & 0o7777 == 0o6777
    os.chdir(root)  # a user may not pass the barrier
    try:
        as_nobody(lambda: change("tool"))
    finally:
        os.chdir("/")
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


@pytest.mark.parametrize("change", [write, truncate, open_truncated])
def test_root_may_write_to_a_set_id_file(host, change):
    root = host.mount()
    path = root / "tool"
    path.write_bytes(b"a program")
    path.chmod(0o6755)
    change(path)
    host.run("sync", "--file-system", os.fspath(host.prefix / "autopod/pod/root/tool"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755


def test_set_id_bits_set_after_writing_stay(host):
    root = host.mount()
    path = root / "tool"
    with open(path, "wb") as file:
        file.write(b"a program")
        file.flush()
        os.fchmod(file.fileno(), 0o4755)
    host.run("sync", "--file-system", os.fspath(host.prefix / "autopod/pod/root/tool"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o4755
    os.chown(path, 0, 5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.parametrize("change", [write, truncate, open_truncated])
def test_a_write_drops_capabilities(host, change):
    root = host.mount()
    path = root / "tool"
    path.write_bytes(b"a program")
    write(path)  # the kernel notes that there is nothing to be dropped
    os.setxattr(path, "security.capability", CAPABILITY)
    assert "security.capability" in os.listxattr(path)
    change(path)
    assert "security.capability" not in os.listxattr(path)


@pytest.mark.parametrize("directory", [False, True])
def test_an_acl_set_from_outside_the_group_drops_its_set_id_bit(host, directory):
    """As chmod(2) does; the kernel leaves it to the file system for ACLs."""
    root = host.mount()
    path = root / "tool"
    if directory:
        path.mkdir()
    else:
        path.touch()
    acl = struct.pack("<I" + "HHI" * 3, 2, 1, 7, 0xFFFFFFFF, 4, 7, 0xFFFFFFFF, 32, 7, 0xFFFFFFFF)
    for group, mode in ((65534, 0o2777), (0, 0o777)):
        os.chown(path, 65534, group)
        path.chmod(0o2755)
        os.chdir(root)
        try:
            as_nobody(lambda: os.setxattr("tool", "system.posix_acl_access", acl))
        finally:
            os.chdir("/")
        assert stat.S_IMODE(path.stat().st_mode) == mode
