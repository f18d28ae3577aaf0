"""Incremental checkpoints: little is written, and all of the pod comes back, or it is refused."""

import json
import os
import shutil
import signal

import pytest

from examples.exim.mail import wait_until

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

PROGRAM = """
import hashlib, os, signal
memory, count = bytearray(os.urandom(24 << 20)), 0

def sums():
    found = hashlib.sha256(memory)
    with open("/srv/big", "rb") as file:
        while piece := file.read(1 << 16):
            found.update(piece)
    return found.hexdigest()

with open("/srv/big", "wb") as file:
    file.write(os.urandom(4 << 20))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("count 0 -", sums(), flush=True)
while True:
    signal.sigwait([signal.SIGUSR1])
    before, count = sums(), count + 1
    memory[count << 20 : (count << 20) + 8192] = os.urandom(8192)
    with open("/srv/small", "a") as file:
        file.write(f"{count}\\n")
    print("count", count, before, sums(), flush=True)
"""


class Busy:
    """A pod whose program has 24 MiB in memory and 4 MiB in a file, of which it changes little."""

    def __init__(self, host):
        self.host, self.sums = host, {}

    def step(self, to):
        """Let it go on; what it has must be what it had when it had counted to one less."""
        [row] = self.host.processes("busy").values()
        seen = len(self.said())
        os.kill(row["host_pid"], signal.SIGUSR1)
        wait_until(lambda: len(self.said()) > seen, f"it counts to {to}", 60)
        _, count, before, self.sums[to] = self.said()[-1].split()
        assert (int(count), before) == (to, self.sums[to - 1])
        written = (self.host.root("busy") / "srv/small").read_text().split()
        assert written == [str(number) for number in range(1, to + 1)]

    def said(self):
        log = self.host.prefix / "var/lib/autopod/busy/log"
        return [line for line in log.read_text().splitlines(keepends=True) if line[-1] == "\n"]

    def kept(self):
        return json.loads(self.host.run("autopod", "checkpoints", "busy", "--json"))


@pytest.fixture
def busy(host, debian_root):
    host.configure("busy", '[network]\nmode = "none"\n')
    host.run("autopod", "add", "busy", "--base", debian_root)
    host.run("autopod", "addproc", "busy", "/usr/bin/python3", "-c", PROGRAM)
    busy = Busy(host)
    wait_until(lambda: len(busy.said()) == 1, "the program runs", 60)
    busy.sums[0] = busy.said()[0].split()[-1]
    return busy


def test_two_files(busy, tmp_path):
    host, full, since = busy.host, tmp_path / "full.pod", tmp_path / "since.pod"
    away = tmp_path / "away" / "full.pod"
    away.parent.mkdir()
    checkpoint, restart = ("autopod", "checkpoint", "busy"), ("autopod", "restart", "busy")
    host.run(*checkpoint, "-o", full, "--leave-running")
    busy.step(to=1)
    again = host.run(*checkpoint, "-o", full, "--since", full, expect=1)
    assert "it would replace what it builds upon" in again
    host.run(*checkpoint, "-o", since, "--since", full)
    assert since.stat().st_size < full.stat().st_size / 10
    assert f"so is {full}, which it builds upon" in host.run("ckpt", "verify", since)
    assert "earlier archive" in host.run("ckpt", "show", since)
    assert "/srv/small" in host.run("ckpt", "diff", full, since)
    assert "not whole itself" in host.run(*checkpoint, "-o", away, "--since", since, expect=1)

    host.run(*restart, "-i", since)
    busy.step(to=2)
    host.run("autopod", "rm", "busy", "--purge")
    full.rename(away)
    for command in (("ckpt", "verify", since), (*restart, "-i", since)):
        said = host.run(*command, expect=1)
        assert "the archive that it builds upon is not beside it" in said
        assert "--since FILE" in said
    assert "busy" not in host.pods()
    assert "good" in host.run("ckpt", "verify", since, "--since", away)
    host.run(*restart, "-i", since, "--since", away)
    busy.step(to=2)
    host.run("autopod", "rm", "busy", "--purge")

    whole = tmp_path / "whole.pod"
    host.run("ckpt", "whole", since, whole, "--since", away)
    away.unlink()
    since.unlink()
    host.run(*restart, "-i", whole)
    busy.step(to=2)


def test_damaged(busy, tmp_path):
    """A byte of the earlier one: nothing builds upon it, nothing of a pod comes of it."""
    host, full, since = busy.host, tmp_path / "full.pod", tmp_path / "since.pod"
    checkpoint = ("autopod", "checkpoint", "busy", "-o", since, "--since", full)
    restart = ("autopod", "restart", "busy", "-i", since)
    host.run("autopod", "checkpoint", "busy", "-o", full, "--leave-running")
    change_a_byte(full)
    assert f"{full}: pages" in host.run(*checkpoint, expect=1)
    busy.step(to=1)
    change_a_byte(full)
    host.run(*checkpoint)
    host.run("autopod", "rm", "busy", "--purge")
    change_a_byte(full)
    for command in (("ckpt", "verify", since), restart):
        assert f"{full}: pages" in host.run(*command, expect=1)
    assert "busy" not in host.pods()
    good = full.with_name("good.pod")
    shutil.copy(full, good)
    change_a_byte(good)
    host.run(*restart)
    busy.step(to=2)


def change_a_byte(file):
    """Change a byte of the pages, or change it back."""
    with file.open("r+b") as archive:
        archive.seek(8 << 20)
        [byte] = archive.read(1)
        archive.seek(8 << 20)
        archive.write(bytes([byte ^ 1]))


def test_kept(busy):
    host = busy.host
    for number in range(1, 6):
        busy.step(to=number)
        host.run("autopod", "checkpoint", "busy", "--keep", "2", "--whole-every", "3")
        expected = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 3, 4], 5: [4, 5]}[number]
        assert [row["checkpoint"] for row in busy.kept()] == expected
    whole, since = busy.kept()
    assert (whole["since"], since["since"]) == (None, 4)
    assert since["file"].endswith("-since-000004.pod")
    assert since["bytes"] < whole["bytes"] / 10
    host.run("launcher", "kill", "busy")
    host.run("autopod", "restart", "busy", "--at", "2999-01-01T00:00:00Z")
    busy.step(to=6)

    # What it would build upon is damaged: it is whole. One of the two newest needs it all the same.
    with open(whole["file"], "r+b") as file:
        file.seek(1541)
        file.write(bytes(64))
    said = host.run("autopod", "checkpoint", "busy", "--keep", "2", "--whole-every", "3")
    assert "note: this checkpoint is whole: " in said
    assert [(row["checkpoint"], row["since"]) for row in busy.kept()] == [
        (4, None), (5, 4), (6, None)
    ]  # fmt: skip
    host.run("ckpt", "verify", busy.kept()[-1]["file"])


def test_the_last_one_is_whole(busy):
    host = busy.host
    host.run("autopod", "checkpoint", "busy", "--keep", "2", "--whole-every", "9")
    host.run("autopod", "checkpoint", "busy", "--keep", "2", "--whole-every", "9", "--end")
    assert [row["since"] for row in busy.kept()] == [None, None]
    policy = host.prefix / "etc/autopod/autopod.toml"
    policy.write_text(
        '[fleet]\nfile = "/nowhere"\nrecover = "store"\n[archives]\nurl = "file:///nowhere"\n'
    )
    again = ("autopod", "checkpoint", "busy", "--keep", "2", "--whole-every", "9")
    assert "only whole ones are copied" in host.run(*again, expect=1)
    policy.unlink()
    for wrong in (
        ("-o", "x", "--whole-every", "3"),
        ("--keep", "3", "--since", "x"),
    ):
        host.run("autopod", "checkpoint", "busy", *wrong, expect=2)


def test_kept_and_encrypted(busy):
    """From when on they are, the next one is whole, and builds upon none that is not."""
    host, take = busy.host, ("autopod", "checkpoint", "busy", "--keep", "9", "--whole-every", "9")
    host.run(*take)
    host.run("ckpt", "keygen", "--encryption")
    assert "only one of it and the new one is encrypted" in host.run(*take)
    busy.step(to=1)
    host.run(*take)
    assert [row["since"] for row in busy.kept()] == [None, None, 2]
    host.run("launcher", "kill", "busy")
    host.run("autopod", "restart", "busy", "--at", "2999-01-01T00:00:00Z")
    busy.step(to=2)

    # A host that cannot read what it has written cannot build upon it.
    (host.prefix / "etc/autopod/keys/identity.pem").unlink()
    assert "no key that is here is a recipient's" in host.run(*take)
    assert busy.kept()[-1]["since"] is None
