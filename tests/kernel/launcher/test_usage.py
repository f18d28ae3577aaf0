"""`launcher top`."""

import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path

import pytest

from launcher import iolimits, network
from launcher.config import Limits

from .conftest import LAUNCHER, wait_until

pytestmark = pytest.mark.needs("root", "namespaces", "cc")

EATS = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    if (fork() == 0) memset(malloc(96 << 20), 1, 96 << 20);
    wait(0);
    memset(malloc(16 << 20), 1, 16 << 20);
    write(1, "up\n", 3);
    pause();
}
"""


def test_usage_and_a_kill_for_want_of_memory(host, small_tree):
    host.mount("a", small_tree(EATS))
    host.configure("a", '[network]\nmode = "none"\n[limits]\nmemory = "64M"')
    assert json.loads(host.launch("top", "--json").stdout) == []
    host.launch("start", "a", "/probe")
    wait_until(lambda: host.places.log("a").read_text() == "up\n")

    [row] = json.loads(host.launch("top", "--json").stdout)

    assert row["pod"] == "a"
    assert row["processes"] == 1
    assert row["cpu"] > 0
    assert 16 << 10 <= row["memory"] <= row["limit"] == 64 << 10
    assert row["oom_kills"] == 1
    assert re.fullmatch(r"probe \([0-9]+\)", row["oom_killed"])
    assert host.launch("top").stdout.split()[:4] == ["POD", "PROCESSES", "CPU", "MEMORY"]


def screen(text):
    """What a terminal shows after *text*: the lines since it was cleared last."""
    return text.rpartition("\33[J")[2].replace("\r", "").splitlines()


def test_the_table_lives_in_a_terminal(host, small_tree):
    host.mount("a", small_tree(EATS))
    host.configure("a", '[network]\nmode = "none"')
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    text = ""

    def shows(predicate):
        nonlocal text
        try:
            text += os.read(ours, 1 << 16).decode()
        except BlockingIOError:
            return False
        return predicate(screen(text))

    client = subprocess.Popen([LAUNCHER, "top"], stdout=theirs)
    try:
        wait_until(lambda: shows(lambda lines: lines and lines[0].startswith("POD  PROCESSES")))
        assert len(screen(text)) == 1
        host.launch("start", "a", "/probe")
        wait_until(lambda: shows(lambda lines: lines[1:] and lines[1].split()[:2] == ["a", "2"]))
        host.launch("kill", "a")
        wait_until(lambda: shows(lambda lines: len(lines) == 1))
    finally:
        client.kill()
        client.wait()
    os.close(ours)
    os.close(theirs)


def test_io_limits_are_of_the_stackfs_daemon(host, tmp_path, small_tree):
    """It is as slow as it is told to be, and free again when the pod has ended."""
    tree = tmp_path / "tree"
    small_tree("#include <unistd.h>\nint main(void) { pause(); }")
    (tree / "data").write_bytes(os.urandom(2 << 20))
    with open(tree / "data", "rb") as data:
        os.fsync(data.fileno())
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stackfs = LAUNCHER.with_name("stackfs")
    subprocess.run([stackfs, "mount", "s", "--lower", tree], check=True, capture_output=True)
    try:
        host.configure("s", '[network]\nmode = "none"\n[limits]\nio_read = "2M"')
        host.launch("start", "s", "/probe")
        begin = time.monotonic()
        data = (host.places.root("s") / "data").read_bytes()
        took = time.monotonic() - begin
        pids = iolimits._daemons(host.places, "s")
        groups = [Path(f"/proc/{pid}/cgroup").read_text() for pid in pids]
        host.launch("kill", "s")
        after = [Path(f"/proc/{pid}/cgroup").read_text() for pid in pids]
    finally:
        host.launch("kill", "s", expect=None)
        network.remove_network(host.places, "s")
        subprocess.run([stackfs, "umount", "s"], check=True, capture_output=True)

    assert data == (tree / "data").read_bytes()
    assert took > 0.5
    assert all("/_files.s" in text for text in groups)
    assert not any("/_files.s" in text for text in after)


def test_what_io_limits_are_written_as():
    limits = Limits(io_read="1M")

    assert iolimits.settings(limits, 1, "8:0") == [
        ("blkio.throttle.read_bps_device", "8:0 1048576")
    ]
    assert iolimits.settings(limits, 2, "8:0") == [("io.max", "8:0 rbps=1048576 wbps=max")]
