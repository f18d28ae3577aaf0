"""Pods that live on: services of several kinds through checkpoint and restart."""

import contextlib
import os
import re
import shutil
import signal
import subprocess

import pytest

from examples import leftovers
from examples.exim.mail import wait_until
from tests.kernel.autopod.conftest import BIN

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

COUNTERS = """
import threading, time
counts = [0, 0, 0]
def count(i):
    while True:
        counts[i] += 1
        time.sleep(0.002)
for i in range(3):
    threading.Thread(target=count, args=(i,), daemon=True).start()
start = time.monotonic()
while True:
    print(*counts, f"{time.monotonic() - start:.3f}", flush=True)
    time.sleep(0.01)
"""


def lines(host, pod):
    """The counters' log: each line three counts and the seconds since the start."""
    text = host.log(pod)
    return [tuple(map(float, line.split())) for line in text.splitlines() if line.count(" ") == 3]


@pytest.fixture
def counters(host, debian_root):
    """A running pod: a Python program with three threads beside the main one."""
    host.run("autopod", "add", "count", "--base", debian_root)
    host.run("autopod", "addproc", "count", "/usr/bin/python3", "-c", COUNTERS)
    wait_until(lambda: len(lines(host, "count")) > 3, "the counters run")
    return host


@pytest.fixture
def archive(host):
    return host.prefix / "archive.pod"


def goes_on(host):
    seen = len(lines(host, "count"))
    wait_until(lambda: len(lines(host, "count")) > seen + 3, "the counters go on")


def threads(host, pod):
    [row] = host.processes(pod).values()
    return len(os.listdir(f"/proc/{row['host_pid']}/task"))


def test_threads_go_on_where_they_were(counters, archive):
    host = counters
    pids = list(host.processes("count"))
    host.run("autopod", "checkpoint", "count", "-o", archive)
    assert host.pods()["count"]["state"] == "stopped"
    before = lines(host, "count")
    host.run("autopod", "restart", "count", "-i", archive)
    wait_until(lambda: len(lines(host, "count")) > len(before) + 3, "the counters go on")
    after = lines(host, "count")
    assert after == sorted(after)
    assert after[len(before)][3] - before[-1][3] < 1, "monotonic time goes on where it was"
    assert list(host.processes("count")) == pids
    assert threads(host, "count") == 4


def test_a_pod_without_programs_cannot_be_checkpointed(host, debian_root, archive):
    host.run("autopod", "add", "idle", "--base", debian_root)
    host.run("autopod", "addproc", "idle", "/bin/true")
    wait_until(lambda: not host.processes("idle"), "it has ended")
    said = "no program runs in pod 'idle': there is nothing to checkpoint\n"
    assert host.run("ckpt", "check", "idle", expect=1) == f"ckpt: error: {said}"
    output = host.run("autopod", "checkpoint", "idle", "-o", archive, expect=1)
    assert output == f"autopod: error: {said}"
    assert not archive.exists()


def test_two_restarts_in_a_row(counters, archive):
    host = counters
    for _ in range(2):
        host.run("autopod", "checkpoint", "count", "-o", archive)
        host.run("autopod", "restart", "count", "-i", archive)
        goes_on(host)
    seen = lines(host, "count")
    assert seen == sorted(seen)


def test_a_pod_may_go_on_after_its_checkpoint(counters, archive):
    host = counters
    [pid] = [row["host_pid"] for row in host.processes("count").values()]
    host.run("autopod", "checkpoint", "count", "-o", archive, "--leave-running")
    goes_on(host)
    assert [row["host_pid"] for row in host.processes("count").values()] == [pid]
    assert "is running" in host.run("autopod", "restart", "count", "-i", archive, expect=1)
    host.run("launcher", "kill", "count")
    # What it wrote after the checkpoint is other state: nothing is thrown away unasked.
    (host.root("count") / "srv/later").write_text("written after the checkpoint")
    output = host.run("autopod", "restart", "count", "-i", archive, expect=1)
    assert "--replace" in output
    host.run("autopod", "restart", "count", "-i", archive, "--replace")
    assert not (host.root("count") / "srv/later").exists()
    assert threads(host, "count") == 4


def test_a_bad_archive_leaves_nothing(counters, archive, debian_root):
    host = counters
    host.run("autopod", "checkpoint", "count", "-o", archive)
    host.run("autopod", "rm", "count", "--purge")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    tampered = host.prefix / "tampered.pod"
    tampered.write_bytes(content)
    truncated = host.prefix / "truncated.pod"
    truncated.write_bytes(archive.read_bytes()[:-512])
    for bad in (tampered, truncated):
        host.run("autopod", "restart", "count", "-i", bad, expect=1)
        assert leftovers.everything(host.prefix) == []
        assert host.pods() == {}


def test_another_host_needs_the_key_and_the_base_wherever_it_is(counters, archive, debian_root):
    """All of the pod is gone; its key is trusted again; its base has another name."""
    host = counters
    host.run("autopod", "checkpoint", "count", "-o", archive)
    host.run("autopod", "rm", "count", "--purge")
    keys = host.prefix / "etc/autopod"
    (keys / "keys/public.pem").rename(host.prefix / "their.pem")
    for directory in (keys / "keys", keys / "trust"):
        shutil.rmtree(directory)
    elsewhere = host.prefix / "elsewhere"
    elsewhere.symlink_to(debian_root)
    argv = ("autopod", "restart", "count", "-i", archive, "--base", elsewhere)
    refused = host.run(*argv, expect=1)
    assert "ckpt trust" in refused
    assert leftovers.everything(host.prefix) == []
    host.run("ckpt", "trust", host.prefix / "their.pem")
    host.run(*argv)
    assert threads(host, "count") == 4


@pytest.mark.parametrize("config", [None, 'hostname = "other"', "[network]\nnat = false"])
def test_addresses_come_along(host, debian_root, archive, config):
    """The other host has no such pool, and may have a configuration that says nothing of them."""
    pools = host.prefix / "etc/autopod/network.toml"
    pools.parent.mkdir(parents=True)
    pools.write_text('pool = "192.0.2.0/24"\npool6 = "fd98:1::/64"\n')

    def shown():
        net = host.prefix / "run/autopod/one/net"
        argv = ["nsenter", f"--net={net}", "ip", "-o", "address", "show", "dev", "eth0"]
        mac = subprocess.check_output([*argv[:2], "cat", "/sys/class/net/eth0/address"])
        return mac, re.findall(r"inet6? (192\S+|fd98\S+)", subprocess.check_output(argv, text=True))

    host.configure("one", '[network]\nmac = "02:50:4f:44:00:0a"\n')
    host.run("autopod", "add", "one", "--base", debian_root)
    host.run("autopod", "addproc", "one", "/bin/sleep", "1000")
    before = shown()
    host.run("autopod", "checkpoint", "one", "-o", archive)
    host.run("autopod", "rm", "one", "--purge")
    pools.unlink()
    if config:
        host.configure("one", config)

    host.run("autopod", "restart", "one", "-i", archive)

    assert len(before[1]) == 2
    assert shown() == before


def test_a_service_is_kept_after_a_restart(host, debian_root, archive):
    host.configure(
        "one",
        '[service]\nprogram = "/bin/sh"\nrestart = "on-failure"\n'
        '[arguments]\n"/bin/sh" = ["-c", "echo begun; exec sleep 1000"]\n',
    )
    host.run("autopod", "add", "one", "--base", debian_root)
    host.run("launcher", "start", "one")
    wait_until(
        lambda: [row["command"] for row in host.processes("one").values()] == ["sleep 1000"],
        "the service",
    )
    host.run("autopod", "checkpoint", "one", "-o", archive)
    assert host.log("one") == "begun\n", "a checkpoint is no failure"
    host.run("autopod", "restart", "one", "-i", archive)
    [row] = host.processes("one").values()
    assert row["command"] == "sleep 1000"

    os.kill(row["host_pid"], signal.SIGKILL)

    wait_until(lambda: host.log("one").count("begun") == 2, "the service again")


def test_another_base_is_refused(counters, archive, exim_root):
    host = counters
    host.run("autopod", "checkpoint", "count", "-o", archive)
    host.run("autopod", "rm", "count", "--purge")
    base = host.prefix / "base"
    base.mkdir()
    refused = host.run("autopod", "restart", "count", "-i", archive, "--base", base, expect=1)
    assert str(base) in refused or "lower" in refused
    assert leftovers.everything(host.prefix) == []


def test_a_busy_pod_is_not_refused_for_what_passes(host, debian_root, archive):
    """Pipes whose other end has just been closed, processes that come and go."""
    script = "while :; do echo x | cat | cat > /dev/null; done"
    host.run("autopod", "add", "busy", "--base", debian_root)
    host.run("autopod", "addproc", "busy", "/bin/bash", "-c", script)
    [shell] = [pid for pid, row in host.processes("busy").items() if row["parent"] == 1]
    for _ in range(5):
        assert host.run("ckpt", "check", "busy") == "pod busy can be checkpointed\n"
    for _ in range(3):
        host.run("autopod", "checkpoint", "busy", "-o", archive)
        host.run("autopod", "restart", "busy", "-i", archive)
        assert host.processes("busy")[shell]["parent"] == 1
        wait_until(lambda: len(host.processes("busy")) > 1, "it starts others again")


class Terminal:
    """`launcher` on a terminal of its own, as a person would have it."""

    def __init__(self, *argv):
        self._master, slave = os.openpty()
        self._process = subprocess.Popen(
            [BIN / "launcher", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.seen = ""

    def expect(self, pattern):
        def found():
            with contextlib.suppress(OSError):  # nothing to read yet; or the other side has gone
                self.seen += os.read(self._master, 65536).decode(errors="replace")
            return re.search(pattern, self.seen)

        try:
            wait_until(lambda: found() is not None, f"{pattern!r} appears")
        except TimeoutError as e:
            raise AssertionError(f"{e}; seen: {self.seen!r}") from e

    def type(self, line):
        self.seen = ""
        os.write(self._master, line.encode() + b"\n")

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._master)


def test_a_shell_on_a_terminal(host, debian_root, archive):
    host.run("autopod", "add", "shell", "--base", debian_root)
    terminal = Terminal("run", "shell", "/bin/bash", "--norc")
    try:
        terminal.expect(r"bash-\S+# ")
        terminal.type("kept=42; sleep 1000 & echo pid=$!.")
        terminal.expect(r"pid=\d+\.")

        def commands():
            return {pid: row["command"] for pid, row in host.processes("shell").items()}

        wait_until(lambda: "sleep 1000" in commands().values(), "sleep runs")
        before = commands()
        host.run("autopod", "checkpoint", "shell", "-o", archive)
    finally:
        terminal.close()
    host.run("autopod", "restart", "shell", "-i", archive)
    assert commands() == before
    terminal = Terminal("attach", "shell")
    try:
        terminal.type("echo still=$kept. ; jobs ; tty")
        terminal.expect(r"still=42\.")
        terminal.expect(r"Running\s+sleep 1000")
        terminal.expect(r"/dev/pts/\d+")
    finally:
        terminal.close()
