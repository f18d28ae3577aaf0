"""Who keeps a mount busy, and how it ends."""

import os
import signal
import subprocess

import pytest

from .conftest import fill, wait_until

pytestmark = pytest.mark.needs("root", "fuse")


def test_umount_names_who_is_in_the_way(host):
    fill(host.lower)
    host.mount()
    script = 'cd "$0" && echo && exec sleep 1000'
    root = os.fspath(host.prefix / "autopod/pod/root")
    inside = host.spawn("sh", "-c", script, root, stdout=subprocess.PIPE)
    inside.stdout.readline()
    try:
        refused = host.stackfs("umount", "pod", check=False)
        assert refused.returncode == 1
        assert f"sleep ({inside.pid})".encode() in refused.stderr
        pid = host.daemon()
        host.stackfs("umount", "--lazy", "pod")
        assert os.listdir(f"/proc/{inside.pid}/cwd") == ["etc"]  # it goes on for its users
    finally:
        inside.kill()
        inside.communicate()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/fd/0"))


def test_namespace_copies_keep_it_busy(host):
    """An unmount does not reach a copy in another namespace: say so instead of leaking."""
    fill(host.lower)
    host.mount()
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read x"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with host.spawn(*argv, **pipes) as other:
        other.stdout.readline()
        refused = host.stackfs("umount", "pod", check=False)
        assert b"in use by sh" in refused.stderr
    host.stackfs("umount", "pod")


def test_mounts_in_it_keep_it_busy(host):
    """What is mounted in the pod's root is named; what the mount covers is not in the way."""
    fill(host.lower)
    root = host.prefix / "autopod/pod/root"
    root.mkdir(parents=True)
    host.run("mount", "--bind", host.lower, root)
    host.mount()
    host.run("mount", "-t", "tmpfs", "t", root / "etc")
    refused = host.stackfs("umount", "pod", check=False)
    assert f"in use by the mount at {root}/etc\n".encode() in refused.stderr
    host.run("umount", root / "etc")
    host.stackfs("umount", "pod")


def test_sigterm_unmounts(host):
    fill(host.lower)
    host.mount()
    pid = host.daemon()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/fd/0"))
    assert host.list() == []
    assert os.listdir(host.seen(host.prefix / "autopod/pod")) == []
