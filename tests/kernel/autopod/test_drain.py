"""A host is emptied, updated and rebooted, and its pods live on. The reboot is a script."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from autopod.status import store
from examples.exim.mail import wait_until
from launcher.lock import locked
from launcher.places import Places
from tests.kernel.autopod.conftest import BIN
from tests.kernel.autopod.repository import ACT, NEW, OLD, install, new_kernel

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

COUNTER = "i=0; while :; do i=$((i+1)); echo $i; read -t 0.05 line <>/tmp/wait; done"

INSTALL = """\
#!/bin/sh
echo $$ >{0}/installing.new
mv {0}/installing.new {0}/installing
[ -e {0}/quick ] || exec sleep 600
echo "$@" >{0}/installed
cp {0}/status.new {0}/status
"""
REBOOT = """\
#!/bin/sh
{1}/stackfs umount count || exit 1
echo second >{0}/boot
echo '{2} #1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (2026-11-01)' >{0}/running
echo rebooted >>{0}/reboots
"""


@pytest.fixture
def counter(host, debian_root):
    """A pod that counts into its log."""
    host.run("autopod", "add", "count", "--base", debian_root)
    program = f"mkfifo /tmp/wait; {COUNTER}"
    host.run("autopod", "addproc", "count", "/bin/bash", "-c", program)
    wait_until(lambda: numbers(host), "the pod counts")
    return host


def numbers(host):
    """What is in the log in whole lines."""
    text = Places(host.prefix).log("count").read_text()
    return [int(line) for line in text.split("\n")[:-1]]


def goes_on(host):
    """The pod counts on where it stopped: nothing twice, nothing left out."""
    seen = len(numbers(host))
    wait_until(lambda: len(numbers(host)) > seen, "the pod counts on")
    counted = numbers(host)
    assert counted == list(range(1, len(counted) + 1))


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


def cycle():
    return [sys.executable, "-m", "autopod.status.cycle"]


def last(prefix):
    with store.opened(Places(prefix)) as history:
        return history.last_drain()


def told(prefix, kind):
    with store.opened(Places(prefix)) as history:
        return [one.text for one in history.recent(-1) if one.kind == kind]


def is_written_down(prefix):
    """What was decided, each time that it changed, and what was done."""
    decided = [text.partition(":")[0] for text in told(prefix, "reboot")]
    assert decided == ["it is unknown whether it is needed", "reboot needed"]
    with store.opened(Places(prefix)) as history:
        drain = history.last_drain().id
        journal = [one.text for one in history.recent(-1) if one.drain == drain]
    assert journal[0].startswith(f"begins, by itself: linux-image-{NEW} 6.1.158-1: ")
    assert "pod count: runs again" in journal
    assert journal[-1] == f"done; kernel {NEW} runs, as expected"


@contextlib.contextmanager
def service(prefix, monkeypatch):
    """Let the service run until it has told systemd that it is ready; then end it."""
    address = os.fspath(prefix / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(300)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        with subprocess.Popen([BIN / "autopod", "statusd"], stdin=subprocess.DEVNULL) as process:
            try:
                assert listener.recv(100) == b"READY=1"
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(300) == 0
    os.unlink(address)


def test_pods_come_back_though_somebody_works_on_them(counter, prefix):
    """As a boot does, which adds them."""
    host = counter
    host.run("autopod", "drain", "--no-install")
    with locked(Places(prefix), "count"):
        process = subprocess.Popen([BIN / "autopod", "drain", "--undo"])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
    assert process.wait(60) == 0
    goes_on(host)


def test_by_hand_and_back_and_then_by_itself_to_the_next_boot(
    counter, archive, prefix, monkeypatch
):
    host, policy = counter, prefix / "etc/autopod/autopod.toml"
    drained = json.loads(host.run("autopod", "drain", "--no-install", "--json"))
    assert (drained["pods"][0]["place"], drained["expected"]) == ("archive", OLD)
    assert host.pods()["count"]["processes"] == 0
    said = host.run("autopod", "addproc", "count", "/bin/true", expect=1)
    assert "in an archive until this host is rebooted" in said
    host.run("autopod", "drain", "--undo")
    goes_on(host)

    policy.write_text(policy.read_text() + ACT.format(prefix))
    script(prefix / "install", INSTALL.format(prefix))
    script(prefix / "reboot", REBOOT.format(prefix, BIN, NEW))
    new_kernel(archive)
    install(prefix / "status.new", archive, NEW, "6.1.158-1")

    archive.publish(key="stranger")
    subprocess.run(cycle(), check=True)
    assert last(prefix).id == drained["drain"], "nothing follows from what is not genuine"
    assert any(text.startswith("security updates: apt-get: ") for text in told(prefix, "alert"))

    archive.publish()
    with subprocess.Popen(cycle()) as process:
        wait_until((prefix / "installing").exists, "the installation has begun")
        process.kill()
    os.kill(int((prefix / "installing").read_text()), signal.SIGKILL)
    assert last(prefix).phase == "installing"
    assert host.pods()["count"]["processes"] == 0

    (prefix / "quick").touch()
    with service(prefix, monkeypatch):
        pass
    assert (prefix / "installed").read_text().split() == [
        f"linux-image-{NEW}=6.1.158-1",
        "linux-image-amd64=6.1.158-1",
    ]
    assert (prefix / "reboots").read_text() == "rebooted\n"
    assert (last(prefix).phase, last(prefix).expected) == ("rebooting", NEW)

    with service(prefix, monkeypatch):
        assert (last(prefix).phase, last(prefix).failed) == ("done", None)
        assert host.pods()["count"]["processes"] > 0
    goes_on(host)
    assert not list(prefix.glob("var/lib/autopod/.drains/*/*"))
    left = json.loads(host.run("autopod", "drain", "--dry-run", "--json"))
    assert (left["wanted"], left["packages"]) == ([], [])
    is_written_down(prefix)
