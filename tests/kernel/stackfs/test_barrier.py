"""The barrier, from a real pid namespace whose root has every capability."""

import json
import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "fuse")

ESCAPE = Path(__file__).with_name("escape.py")


def opened(host, path, flags):
    return os.open(host.seen(path), flags)


def test_no_walk_leads_out(host):
    """Every attempt ends with EACCES; the pod has no mount namespace that would stop it too."""
    (host.lower / "inside").write_text("")
    host.mount()
    host.mount("other")
    point = host.prefix / "autopod/pod"
    fds = [
        opened(host, point / "root", os.O_RDONLY),
        opened(host, point, os.O_RDONLY),
        opened(host, point, os.O_PATH),
        opened(host, host.prefix / "autopod/other", os.O_RDONLY),
    ]
    argv = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, os.fspath(ESCAPE)]
    try:
        done = host.run(*argv, *map(str, fds), pass_fds=fds)
    finally:
        for fd in fds:
            os.close(fd)
    ended = json.loads(done.stdout)
    assert len(ended) == 33
    # Overlayfs takes no link of procfs, a chroot no user namespace: these end before the barrier.
    earlier = {"overlay_of_the_barrier": "ELOOP", "user_namespace": "EPERM"}
    assert {name: how for name, how in ended.items() if how != "EACCES"} == earlier


def test_the_host_passes(host):
    host.mount()
    point = host.seen(host.prefix / "autopod/pod")
    assert os.listdir(point) == ["root"]
    assert os.stat(point).st_mode & 0o777 == 0o700
    assert os.stat(point / "root/..").st_ino == os.stat(point).st_ino
    with pytest.raises(FileNotFoundError):
        os.stat(point / "other")


@pytest.mark.parametrize("change", [os.rmdir, os.unlink, os.mkdir, Path.touch])
def test_nothing_is_made_in_it(host, change):
    host.mount()
    point = host.seen(host.prefix / "autopod/pod")
    before = os.listdir(point)
    with pytest.raises(OSError):  # noqa: PT011 (which errno is the kernel's business)
        change(point / "other")
    assert os.listdir(point) == before


def test_ordinary_users_of_the_host_stay_out(host):
    host.mount()
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = host.run(*command, "ls", host.prefix / "autopod/pod", check=False)
    assert b"Permission denied" in done.stderr
