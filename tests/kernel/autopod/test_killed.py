"""kill -9 of a command at any stage: the next one puts things in order."""

import signal
import subprocess
from pathlib import Path

import pytest

from examples import leftovers
from examples.exim import mail
from tests.kernel.autopod.conftest import BIN

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

POD_TOML = Path(__file__).parents[3] / "examples/exim/pod.toml"
POD = "10.98.0.10"
MOMENTS = (0.05, 0.15, 0.25, 0.35, 0.5, 0.7)


def killed_after(seconds, *argv):
    """Run a command and kill it after *seconds*, unless it has ended before."""
    process = subprocess.Popen(
        [BIN / argv[0], *argv[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait()


@pytest.mark.parametrize("moment", MOMENTS)
def test_add(host, exim_root, moment):
    status = killed_after(moment, "autopod", "add", "exim", "--base", exim_root)
    assert status in (0, -signal.SIGKILL)
    # The mount that it had asked for may still be coming: then the pod is added already.
    status = killed_after(30, "autopod", "add", "exim", "--base", exim_root)
    assert status in (0, 1)
    mail.wait_until((host.root("exim") / "usr/sbin/exim4").exists, "the root is mounted")
    host.run("launcher", "start", "exim", "/usr/sbin/exim4", "-bd")
    host.run("autopod", "rm", "exim", "--purge")
    assert leftovers.everything(host.prefix) == []


@pytest.fixture
def exim(host, exim_root):
    host.configure("exim", POD_TOML.read_text())
    host.run("autopod", "add", "exim", "--base", exim_root)
    host.run("autopod", "addproc", "exim", "/usr/sbin/exim4")
    mail.wait_until(lambda: mail.answers(POD), "Exim greets")
    return host


def test_checkpoint(exim):
    """Whatever the moment: the pod runs unharmed, or its archive is whole."""
    archive = exim.prefix / "exim.pod"
    for moment in MOMENTS:
        killed_after(moment, "autopod", "checkpoint", "exim", "-o", archive)
        if exim.pods()["exim"]["state"] == "running":
            mail.wait_until(lambda: mail.answers(POD), "Exim greets still")
            mail.send(POD, "bob@elsewhere.test", "alice@pod.test", f"after {moment} s")
        else:
            exim.run("autopod", "restart", "exim", "-i", archive)
            mail.wait_until(lambda: mail.answers(POD), "Exim greets again")
        archive.unlink(missing_ok=True)
    assert not list(exim.prefix.glob("*.pod*"))


def test_restart(exim):
    """Whatever the moment: the next restart brings the pod back."""
    archive = exim.prefix / "exim.pod"
    exim.run("autopod", "checkpoint", "exim", "-o", archive)
    for moment in MOMENTS:
        exim.run("autopod", "rm", "exim", "--purge")
        killed_after(moment, "autopod", "restart", "exim", "-i", archive)
        # Refused if all was done before the kill.
        exim.run("autopod", "restart", "exim", "-i", archive, "--replace", expect=None)
        mail.wait_until(lambda: mail.answers(POD), f"Exim greets after {moment} s")
