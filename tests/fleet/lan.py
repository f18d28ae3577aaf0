"""What joins the hosts: a network namespace, the clients', with two switches in it.

One is between the hosts themselves, the other one between their pods' bridges and the clients.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

from examples.hosts import apart
from launcher import wall
from launcher.identity import bridge_name

if TYPE_CHECKING:
    from tests.fleet.host import Host

CLIENT = "10.98.0.2/16"
"""The address from which clients reach the pods."""


class Lan:
    """The switches; end()."""

    def __init__(self) -> None:
        self._holder = apart()
        self.netns = f"/proc/{self._holder.pid}/ns/net"
        for switch in ("wire", "switch"):
            self._ip("link", "add", switch, "type", "bridge")
            self._ip("link", "set", switch, "up")
        self._ip("addr", "add", CLIENT, "dev", "switch")

    def join(self, host: "Host") -> None:
        """Connect a host whose namespace is new."""
        for cable in self._cables(host):  # of its last life: the kernel takes its time
            self._ip("link", "del", cable, check=False)
        bridge, there = bridge_name(host.places), str(host.holder.pid)
        for inner, (switch, cable) in zip(("wire", "uplink"), self._ends(host), strict=True):
            peer = ("peer", "name", inner, "netns", there)
            self._ip("link", "add", cable, "type", "veth", *peer)
            self._ip("link", "set", cable, "master", switch, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{host.address}/24", "dev", "wire"),
            ("link", "set", "wire", "up"),
            ("link", "add", bridge, "type", "bridge"),
            ("link", "set", "uplink", "master", bridge, "up"),
            ("link", "set", bridge, "up"),
        ):
            host.run("ip", *words)

    def cut(self, host: "Host") -> None:
        """Pull out both of a host's cables."""
        for cable in self._cables(host):
            self._ip("link", "set", cable, "down")

    def mend(self, host: "Host") -> None:
        """Put them in again."""
        for cable in self._cables(host):
            self._ip("link", "set", cable, "up")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread be a client's within the block."""
        with open(self.netns) as there, wall.inside(there.fileno()):
            yield

    def end(self) -> None:
        """Take them away."""
        self._holder.kill()
        self._holder.wait()

    def _ends(self, host: "Host") -> list[tuple[str, str]]:
        return [("wire", f"wire-{host.name}"), ("switch", f"to-{host.name}")]

    def _cables(self, host: "Host") -> list[str]:
        return [cable for _, cable in self._ends(host)]

    def _ip(self, *words: str, check: bool = True) -> None:
        argv = ["nsenter", f"--net={self.netns}", "ip", *words]
        subprocess.run(argv, check=check, capture_output=not check)
