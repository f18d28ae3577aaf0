"""The units, under a real systemd and its logind: a service outlives a reboot."""

import json
import sys

import pytest

from examples.exim.mail import wait_until

from .booted import Machine

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "systemd"), pytest.mark.slow]

ADDRESS = "10.98.0.9"
COUNT = """
import itertools, socket
listening = socket.create_server(("", 80))
for number in itertools.count(1):
    with listening.accept()[0] as connection:
        connection.sendall(b"%d" % number)
"""
ASK = f"import socket; print(socket.create_connection(('{ADDRESS}', 80), 10).recv(100).decode())"
POD = """\
[root]
lower = ["{root}"]
[network]
address = "{address}/16"
[service]
program = "/usr/bin/python3"
[arguments]
"/usr/bin/python3" = ["-c", {code}]
"""
POLICY = "[act]\nhold_shutdown = true\n"
PATIENT = "[Login]\nInhibitDelayMaxSec=100\n"


@pytest.fixture
def machine(tmp_path, debian_root):
    machine = Machine(tmp_path, debian_root)
    try:
        machine.boot()
        yield machine
    finally:
        machine.close()


def write(machine, path, text):
    machine.run("install", "-D", "-m", "644", "/dev/null", path)
    machine.run(sys.executable, "-c", f"open({path!r}, 'w').write({text!r})")


def ask(machine):
    """Return how often the pod has been asked, this time included; not before it listens."""
    said = ""

    def answers():
        nonlocal said
        said = machine.run(sys.executable, "-c", ASK, expect=None).strip()
        return said.isdecimal()

    wait_until(answers, "the pod answers")
    return int(said)


def shown(machine, unit):
    lines = machine.run("systemctl", "show", "-p", "MainPID,NRestarts,ActiveState", unit)
    return dict(line.split("=") for line in lines.splitlines())


def test_a_service_outlives_its_unit_and_a_reboot(machine, debian_root):
    pod = POD.format(root=debian_root, address=ADDRESS, code=json.dumps(COUNT))
    write(machine, "/etc/autopod/pods/count.toml", pod)
    write(machine, "/etc/autopod/autopod.toml", POLICY)
    write(machine, "/etc/systemd/logind.conf.d/patient.conf", PATIENT)
    machine.run("systemctl", "restart", "systemd-logind")
    machine.run("systemctl", "enable", "--now", "pod@count", "autopod-statusd")
    assert ask(machine) == 1

    machine.run("kill", "-KILL", shown(machine, "pod@count")["MainPID"])
    wait_until(lambda: shown(machine, "pod@count")["NRestarts"] == "1", "it is watched again")
    wait_until(lambda: shown(machine, "pod@count")["ActiveState"] == "active", "it is active")
    assert ask(machine) == 2

    locks = ["systemd-inhibit", "--list", "--no-pager"]
    wait_until(lambda: "AutoPod" in machine.run(*locks), "a reboot would be delayed")
    machine.run("systemctl", "reboot")
    machine.wait_until_down()
    machine.boot()
    assert ask(machine) == 3
    assert shown(machine, "pod@count")["ActiveState"] == "active"
    assert machine.run("systemctl", "--failed", "--no-legend") == ""
    said = machine.run("journalctl", "--boot=-1", "--unit=pod@count", "--no-pager")
    assert "result 'exit-code'" not in said, said

    machine.run("systemctl", "stop", "pod@count")
    assert shown(machine, "pod@count")["ActiveState"] == "inactive"
    assert "stopped" in machine.run("launcher", "list")
