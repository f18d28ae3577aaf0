"""Hosts on an overlay, the pods that they serve, and clients elsewhere."""

import contextlib
import json
import socket
from pathlib import Path

from examples import hosts
from examples.exim.mail import wait_until
from launcher import wall
from tests.kernel.autopod.test_moving_connections import ENOUGH
from tests.kernel.ckpt import stream

OVERLAY = 'pool6 = "fd98::/64"\n[overlay]\n'
TOML = """\
[network]
address = "10.98.7.10/16"
address6 = "fd98::10/64"
publish = ["8080:4000"]
nat = true
"""


@contextlib.contextmanager
def on_overlay(*names):
    with hosts.routed(*names) as (machines, client):
        for machine in machines:
            join_overlay(machine)
        yield machines, client


def join_overlay(machine, text=OVERLAY):
    machine.places.network_config().write_text(text)
    machine.run("autopod", "overlay", "sync")


def serve(machine, debian_root, toml=TOML, name="pod"):
    machine.configure(name, toml)
    machine.run("autopod", "add", name, "--base", debian_root)
    program = machine.root(name) / "var/tmp/stream.py"
    program.write_text(Path(stream.__file__).read_text())
    argv = ("/usr/bin/python3", "/var/tmp/stream.py", "::", "4000")
    machine.run("autopod", "addproc", name, *argv)
    wait_until(lambda: "ready" in machine.run("launcher", "logs", name), "it listens")


@contextlib.contextmanager
def inside(netns):
    with open(netns) as there, wall.inside(there.fileno()):
        yield


def netns(machine):
    return f"/proc/{machine.holder.pid}/ns/net"


def connect(where, host, port, count=4):
    with inside(where):
        return stream.Client((host, port), count)


def reach(where, host, port=8080):
    with inside(where):
        socket.create_connection((host, port), timeout=60).close()


def goes_on(where, host, port=8080):
    """A new connection is served."""
    with connect(where, host, port, 1) as client:
        client.run_until(ENOUGH)
        client.finish()


def relays(machine):
    return {r["pod"]: r for r in json.loads(machine.run("autopod", "relay", "list", "--json"))}


def listed(machine):
    return json.loads(machine.run("autopod", "list", "--json"))


def links(machine):
    shown = machine.run("cat", "/proc/net/dev").splitlines()[2:]
    names = {line.split(":")[0].strip() for line in shown}
    return {name for name in names if name.startswith(f"ap{machine.places.tag}")}


def refused(machine, *argv):
    said = machine.run(*argv, expect=1)
    assert said.startswith("autopod: error: ")
    assert len(said.splitlines()) == 2, said
    return said
