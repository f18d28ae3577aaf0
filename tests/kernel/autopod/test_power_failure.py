"""The power fails while dpkg installs a kernel: the real apt and dpkg, in a root of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autopod.status import store
from examples.exim.mail import wait_until
from launcher.places import Places
from tests.kernel.autopod.repository import NEW, OLD, new_kernel

pytestmark = [pytest.mark.needs("root"), pytest.mark.slow]

ACT = """
[act]
enabled = true
blocked_by_users = false
configure = ["dpkg", "--root={0}/root", "--force-script-chrootless", "--configure", "-a"]
install = ["apt-get", "{{apt}}", "-oDPkg::Options::=--root={0}/root",
           "-oDPkg::Options::=--force-script-chrootless", "--yes", "install", "{{packages}}"]
reboot = ["true"]
"""
POSTINST = """\
#!/bin/sh
[ -e {0}/quick ] && exit 0
echo $$ >{0}/pid.new
mv {0}/pid.new {0}/pid
exec sleep 600
"""


def cycle():
    return [sys.executable, "-m", "autopod.status.cycle"]


def last(prefix):
    with store.opened(Places(prefix)) as history:
        return history.last_drain()


def state(prefix):
    """What dpkg says of the new kernel."""
    argv = ["dpkg-query", f"--admindir={prefix}/root/var/lib/dpkg", "-Wf${db:Status-Status}"]
    argv.append(f"linux-image-{NEW}")
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def ancestors(pid, until):
    """*pid* and its parents up to, and without, *until*."""
    while pid != until:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_installation_is_brought_to_its_end(host, archive, prefix):
    admin = prefix / "root/var/lib/dpkg"
    for directory in ("info", "updates"):
        (admin / directory).mkdir(parents=True)
    os.rename(prefix / "status", admin / "status")
    policy = prefix / "etc/autopod/autopod.toml"
    text = policy.read_text().replace(f"{prefix}/status", f"{admin}/status")
    policy.write_text(text + ACT.format(prefix))
    new_kernel(archive, {"DEBIAN/postinst": POSTINST.format(prefix)})
    archive.publish()

    with subprocess.Popen(cycle()) as process:
        wait_until((prefix / "pid").exists, "dpkg configures the kernel")
        family = list(ancestors(int((prefix / "pid").read_text()), process.pid))
        for pid in (process.pid, *reversed(family)):
            os.kill(pid, signal.SIGKILL)
    assert last(prefix).phase == "installing"
    (prefix / "boot").write_text("second\n")

    report = json.loads(host.run("autopod", "status", "--json", expect=None))
    broken = {one["package"]: one for one in report["updates"]}[f"linux-image-{NEW}"]
    assert broken["level"] == "reboot"
    assert broken["reason"].endswith("its installation was broken off")
    assert f"next boot {OLD}; {NEW} is half installed" in host.run("autopod", "status", expect=None)

    subprocess.run(cycle(), check=True)
    failed = last(prefix)
    assert failed.failed == "the host went down while the updates were installed"
    assert state(prefix) != "installed"
    rehearsed = json.loads(host.run("autopod", "drain", "--dry-run", "--json", expect=1))
    assert any("look at it first" in why for why in rehearsed["against"]), "it is left alone"

    (prefix / "quick").touch()
    host.run("autopod", "drain", "--clear")
    subprocess.run(cycle(), check=True)
    begun = last(prefix)
    assert (begun.phase, begun.expected, begun.failed) == ("rebooting", NEW, None)
    assert begun.id != failed.id
    assert state(prefix) == "installed"
    (prefix / "boot").write_text("third\n")
    subprocess.run(cycle(), check=True)
    assert last(prefix).failed == f"kernel {OLD} runs, {NEW} was expected"
