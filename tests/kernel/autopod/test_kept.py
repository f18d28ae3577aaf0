"""Checkpoints that are kept: a pod goes back in time, its files and its processes together."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from examples.exim.mail import wait_until
from tests.kernel.autopod.conftest import BIN

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

COUNTER = """
import signal
count = 0
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("count", count, flush=True)
while True:
    signal.sigwait([signal.SIGUSR1])
    count += 1
    with open("/srv/count", "a") as file:
        file.write(f"{count}\\n")
    print("count", count, flush=True)
"""


class Counter:
    """A pod whose program counts in its memory and in a file, a signal a time."""

    def __init__(self, host):
        self.host = host

    def count(self, to):
        [row] = self.host.processes("count").values()
        seen = self.said(f"count {to}\n")
        os.kill(row["host_pid"], signal.SIGUSR1)
        wait_until(lambda: self.said(f"count {to}\n") == seen + 1, f"it counts to {to}", 60)

    def said(self, what):
        return (self.host.prefix / "var/lib/autopod/count/log").read_text().count(what)

    def file(self):
        return (self.host.root("count") / "srv/count").read_text().split()

    def kept(self):
        return json.loads(self.host.run("autopod", "checkpoints", "count", "--json"))

    def numbers(self):
        return [row["checkpoint"] for row in self.kept()]


@pytest.fixture
def counter(host, debian_root):
    host.configure("count", '[network]\nmode = "none"\n')
    host.run("autopod", "add", "count", "--base", debian_root)
    host.run("autopod", "addproc", "count", "/usr/bin/python3", "-c", COUNTER)
    counter = Counter(host)
    wait_until(lambda: counter.said("count 0"), "the program counts", 60)
    return counter


def test_the_last_one_ends_the_pod(counter, tmp_path):
    """And the pod goes on from the copy, where nothing else is left of it."""
    host, store = counter.host, f"file://{tmp_path}/store"
    (host.prefix / "etc/autopod/autopod.toml").write_text(f'[archives]\nurl = "{store}"\n')
    counter.count(to=1)
    for wrong in (
        ("-o", "x"),
        ("--keep", "1", "--every", "1h"),
        ("--keep", "1", "--leave-running"),
    ):
        assert "--end" in host.run("autopod", "checkpoint", "count", "--end", *wrong, expect=2)
    said = host.run("autopod", "checkpoint", "count", "--keep", "1", "--end")
    assert f"copied checkpoint 1 to {store}/count/000001-" in said
    assert host.pods()["count"]["state"] == "stopped"
    shutil.rmtree(host.prefix / "var/lib/autopod/count.checkpoints")
    last = ("autopod", "restart", "count", "--at", "2999-01-01T00:00:00Z")
    assert "no kept checkpoint" in host.run(*last, expect=1)
    assert "from checkpoint 1 of" in host.run(*last, "--from", "store")
    counter.count(to=2)
    assert counter.file() == ["1", "2"]


def test_back_in_time(counter):
    host = counter.host
    for number in range(1, 4):
        counter.count(to=number)
        host.run("autopod", "checkpoint", "count", "--keep", "1", *["--pin"] * (number == 1))
    assert counter.numbers() == [1, 3]
    assert [row["pinned"] for row in counter.kept()] == [True, False]
    first = Path(counter.kept()[0]["file"])  # its time is what its name says
    for file in (first, first.with_name(f"{first.name}.pin")):
        file.rename(file.with_name(file.name.replace(first.stem, "000001-20260102T030405Z")))

    back = ("autopod", "restart", "count", "--at")
    assert "has no kept checkpoint" in host.run(*back, "2026-01-02T03:04:04Z", expect=1)
    assert "is running" in host.run(*back, "2026-01-02T03:04:05Z", expect=1)
    host.run("launcher", "kill", "count")
    assert "from checkpoint 1 of 2026-01-02T03:04:05Z" in host.run(*back, "2026-01-02T03:04:05Z")
    assert counter.file() == ["1"]
    counter.count(to=2)
    assert counter.file() == ["1", "2"]
    host.run("launcher", "kill", "count")
    assert "from checkpoint 3 of" in host.run(*back, "2100-01-01")
    counter.count(to=4)
    assert counter.file() == ["1", "2", "3", "4"]

    assert "are pinned: 1" in host.run("autopod", "rm", "count", "--purge", expect=1)
    host.run("autopod", "checkpoints", "count", "--unpin", "1")


def test_killed_while_it_takes_them(counter):
    """At whatever moment: what is listed is whole, the pod goes on, the next one is taken."""
    command = [BIN / "autopod", "checkpoint", "count", "--every", "1s", "--keep", "3"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as taking:
        try:
            kept = counter.host.prefix / "var/lib/autopod/count.checkpoints"
            wait_until(lambda: len(list(kept.glob("0*.pod"))) >= 2, "it takes them", 60)
        finally:
            os.killpg(taking.pid, signal.SIGKILL)
    for row in counter.kept():
        counter.host.run("ckpt", "verify", row["file"])
    counter.count(to=1)
    newest = counter.numbers()[-1]
    counter.host.run("autopod", "checkpoint", "count", "--keep", "1")
    assert counter.numbers() == [newest + 1]
