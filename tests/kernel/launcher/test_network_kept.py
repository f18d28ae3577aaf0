"""A network is made once and kept: after a boot, a crash, a damaged book, behind a wall."""

import json
import os
import shutil
import signal
import subprocess
import sys

import msgspec
import pytest

from launcher import abi, addresses, config, enter, network, pods

from .conftest import FORWARDING, ip, shown

pytestmark = [pytest.mark.needs("root", "namespaces"), pytest.mark.usefixtures("no_forwarding")]


def test_identity_outlives_the_runtime_files(pod):
    """After a reboot there is no /run, and no namespace: the same pod comes again."""
    pod.places.network_config().parent.mkdir(parents=True)
    pod.places.network_config().write_text('pool = "192.0.2.0/24"\n')
    pod.configure("a", '[network]\npublish = ["8080:80"]')
    pod.create("a")
    before = addresses.identity_of(pod.places, "a")
    pods.destroy(pod.places, "a")
    abi.umount2(os.fspath(network.path(pod.places, "a")), abi.MNT_DETACH)
    shutil.rmtree(pod.places.runs())
    ip("link", "del", before.bridge)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    FORWARDING.write_text("0")
    pod.places.network_config().write_text('pool = "198.51.100.0/24"\n')

    pod.create("a")

    assert addresses.identity_of(pod.places, "a") == before
    assert f" {before.address} " in shown(pod, "a", "-o", "addr")
    assert "8080" in subprocess.check_output(["nft", "list", "ruleset"], text=True)


STAGES = {
    "written down": "_make_namespace",
    "made": "_settle",
    "rules": "_keep",
}


def maker(pod, verb, stage):
    """Run launcher.links, which is killed where it would do *stage*."""
    code = (
        "import os, sys\nfrom launcher import links\n"
        f"links.{stage} = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        f"links._main({verb!r}, 'a')"
    )
    text = msgspec.json.encode(config.load(pod.places, "a"))
    run = subprocess.run([sys.executable, "-c", code], input=text, check=False)
    assert run.returncode == -signal.SIGKILL


@pytest.mark.parametrize("stage", STAGES)
def test_a_maker_that_was_killed(pod, stage):
    pod.configure("a", '[network]\naddress = "10.98.7.10/24"\npublish = ["8080:80"]')
    maker(pod, "make", STAGES[stage])
    assert not network.is_kept(network.path(pod.places, "a"))

    pod.create("a")

    assert " 10.98.7.10/24 " in shown(pod, "a", "-o", "addr")
    assert "8080" in subprocess.check_output(["nft", "list", "ruleset"], text=True)
    gateway = "import socket; print(socket.create_connection(('10.98.7.1', 9), 5))"
    refused = pod.launch("exec", "a", "/usr/bin/python3", "-c", gateway, expect=1)
    assert "ConnectionRefusedError" in refused.stderr


@pytest.mark.parametrize("stage", ["_remove_namespace", "_settle"])
def test_a_remover_that_was_killed(pod, stage):
    pod.configure("a", "[network]\nnat = true")
    network.ensure(pod.places, config.load(pod.places, "a"))
    maker(pod, "remove", stage)
    assert "a" in pods.names(pod.places)

    network.remove_network(pod.places, "a")

    assert addresses.read(pod.places) == addresses.Book()


def test_a_pod_without_a_network_needs_no_pyroute2(pod):
    """Which takes most of the time of who makes one."""
    pod.configure("a", '[network]\nmode = "none"')
    text = msgspec.json.encode(config.load(pod.places, "a"))
    code = (
        "import sys\nfrom launcher import links\nassert links._main(sys.argv[1], 'a') == 0\n"
        "assert 'pyroute2' not in sys.modules"
    )

    def run(verb):
        subprocess.run([sys.executable, "-c", code, verb], input=text, check=True)

    run("make")
    assert "LOOPBACK,UP" in shown(pod, "a", "link")
    run("remove")
    assert not network.is_kept(network.path(pod.places, "a"))


def test_a_damaged_book(pod):
    network.ensure(pod.places, config.load(pod.places, "a"))
    text = pod.places.addresses().read_text()
    pod.places.addresses().write_text(text[: len(text) // 2])

    failed = pod.launch("start", "a", "/bin/true", expect=1)

    assert f"error: {pod.places.addresses()}: Input data was truncated" in failed.stderr
    pod.places.addresses().write_text(text)
    assert json.loads(pod.launch("list", "--json").stdout)[0]["address"].startswith("10.98.")


def test_a_start_makes_no_network(pod, monkeypatch):
    pod.launch("start", "a", "/bin/true")
    pod.launch("kill", "a")

    with monkeypatch.context() as patched:
        patched.setattr(network, "_spawn", lambda *args: pytest.fail("a network was made"))
        pod.create("a")

    assert enter.pids(pod.pod("a")) == []


def on_bridge(pod):
    """Is the host's end of pod a's veth pair a port of the bridge?"""
    found = addresses.identity_of(pod.places, "a")
    (link,) = json.loads(subprocess.check_output(["ip", "-json", "link", "show", found.port]))
    return link.get("master") == found.bridge


def test_behind_a_wall_it_is_no_port_of_the_bridge(pod):
    """The pod has the same address and MAC at another host meanwhile."""
    settings = config.load(pod.places, "a")
    with network.begin(pod.places, settings, walled=True) as making:
        making.finish()
    assert not on_bridge(pod)
    network.open_network(pod.places, "a")
    network.open_network(pod.places, "a")
    assert on_bridge(pod)


def test_a_start_that_follows_joins_the_bridge(pod):
    with network.begin(pod.places, config.load(pod.places, "a"), walled=True) as making:
        making.finish()
    pod.create("a")
    assert on_bridge(pod)


def test_an_interface_that_was_deleted_is_made_anew(pod):
    network.ensure(pod.places, config.load(pod.places, "a"))
    ip("link", "del", addresses.identity_of(pod.places, "a").port)
    pod.create("a")
    assert on_bridge(pod)
    assert " eth0" in shown(pod, "a", "-o", "addr")


def test_ctrl_c_while_the_maker_is_loaded_is_no_traceback(places, capfd):
    """The terminal tells it as well as the command that waits for it."""
    process = network._spawn("settle", places, "", b"")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert (said, process.returncode) == (b"", 130)
    assert capfd.readouterr().err == ""
