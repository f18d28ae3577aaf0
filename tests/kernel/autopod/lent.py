"""Hosts on an overlay, which tests have in turns: to make three takes longer than most tests take.

What a test has done to them is undone after it, by the commands; and then everything must be as it
was, or the test has failed.
"""

import json
import time

from examples import hosts, leftovers
from launcher import addresses, overlay, pods
from launcher.identity import bridge_name


class Lent:
    """A host and its state, as the tests find it."""

    def __init__(self, machine):
        self.machine = machine
        self._bridge = bridge_name(machine.places)
        self._settings = self._read_settings()
        self._files = self._read_files()
        self._before = self._state()

    def clear(self):
        """Take away the pods, and what leads to those that have moved away."""
        for pod in pods.names(self.machine.places):
            self.machine.run("autopod", "rm", pod, "--purge")
        for pod in addresses.read(self.machine.places).relays:
            self.machine.run("autopod", "relay", "end", pod)

    def restore(self):
        """Let it have the configuration, and the place on the overlay, that it had."""
        for file in self._read_files().keys() - self._files.keys():
            file.unlink()
        for file, content in self._files.items():
            file.write_bytes(content)
        if self._state() != self._before:
            self.machine.run("autopod", "overlay", "sync")
        # The bridge, whose settings are among them, may have been made anew.
        for setting, value in self._settings.items() - self._read_settings().items():
            self.machine.run("sysctl", "-qw", f"{setting}={value}")

    def check(self):
        """What is on its way out may take its time."""
        deadline = time.monotonic() + hosts.GRACE_S
        while (state := self._state()) != self._before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state == self._before
        assert self._read_settings() == self._settings
        assert self._read_files() == self._files

    def _read_files(self):
        found = (self.machine.prefix / "etc/autopod").rglob("*")
        return {file: file.read_bytes() for file in found if file.is_file()}

    def _read_settings(self):
        names = [f"net.bridge.bridge-nf-call-{which}" for which in ("iptables", "ip6tables")]
        names += [f"net.ipv4.conf.{one}.rp_filter" for one in ("all", "default", self._bridge)]
        shown = self.machine.run("sysctl", "-e", "net.ipv4.ip_forward", *names)
        return dict(line.split(" = ") for line in shown.splitlines())

    def _state(self):
        """What there is of pods and of the overlay, in the order in which it is easily read."""
        machine = self.machine
        shown = json.loads(self._dump("ip", "-j", "addr"))
        known = self._dump("bridge", "fdb").splitlines()
        return {
            "members": overlay.read(machine.places),
            "book": addresses.read(machine.places),
            "interfaces": {
                one["ifname"]: {a["local"] for a in one["addr_info"] if a["scope"] != "link"}
                for one in shown
            },
            "ways": sorted(line for line in known if " dst " in line and "permanent" in line),
            "rules": machine.run("nft", "list", "ruleset"),
            "left": sorted(leftovers.everything(machine.prefix)),
        }

    def _dump(self, *argv):
        """What is told while something comes or goes may not be whole; the first line says so."""
        while (shown := self.machine.run(*argv)).startswith("Dump was interrupted"):
            pass
        return shown
