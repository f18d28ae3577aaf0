"""Several hosts on one machine: network namespaces, each with a prefix and a service of its own."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from autopod.hosts import PORT
from examples import leftovers
from examples.apart import prefix
from examples.exim.mail import wait_until
from examples.transcript import BIN, Failed
from launcher import enter, pods
from launcher.identity import bridge_name
from launcher.places import Places

GRACE_S = 20
"""For what has been told to end, and is on its way."""


class Machine:
    """A host: a network namespace with an address on the wire, a prefix, and its service."""

    def __init__(self, name: str, number: int, network: str = "192.0.2") -> None:
        """Make host *name* with the address 192.0.2.*number*; end() takes it away."""
        self.name, self.address = name, f"{network}.{number}"
        self.prefix = prefix(f"{name}-")
        self.places = Places(self.prefix)
        self.holder = self.hold()
        self._service: subprocess.Popen[bytes] | None = None

    def hold(self) -> "subprocess.Popen[bytes]":
        """Return a process that holds the host's namespaces, until it is killed."""
        return apart()

    def into(self) -> list[str]:
        """The words before a command that let it run in them."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]

    def command(self, *argv: str | Path) -> list[str]:
        """Return *argv* as it is run on this host; the project's commands by their names."""
        words = [os.fspath(word) for word in argv]
        if (BIN / words[0]).exists():
            words[0] = os.fspath(BIN / words[0])
        return [*self.into(), "env", f"AUTOPOD_PREFIX={self.prefix}", *words]

    def run(self, *argv: str | Path, expect: int | None = 0) -> str:
        """Run *argv* on this host; return standard output and standard error together.

        Raises:
            Failed: the exit status is not *expect*; None takes any. Or there was a traceback.
        """
        run = subprocess.run(
            self.command(*argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        if expect not in (None, run.returncode) or "Traceback" in run.stdout:
            raise Failed(f"{self.name}: {argv}: exit status {run.returncode}\n{run.stdout}")
        return run.stdout

    def serve(self, more: str = "") -> None:
        """Start the service; it listens when this returns. It asks no archive for updates.

        Args:
            more: of its configuration.
        """
        policy = self.prefix / "etc/autopod/autopod.toml"
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text(f"[service]\nevery_s = 0\n{more}")
        self._service = subprocess.Popen(self.command("autopod", "statusd"))
        wait_until(self.listens, "the service listens")

    def listens(self) -> bool:
        """Does its service listen? Source: proc(5), /proc/net/tcp, of its network namespace."""
        sockets = Path(f"/proc/{self.holder.pid}/net/tcp").read_text()
        return any(f":{PORT:04X} " in line and " 0A " in line for line in sockets.splitlines())

    def stop_service(self, number: int = signal.SIGTERM) -> None:
        """Send the service a signal, and wait for its end."""
        if self._service:
            self._service.send_signal(number)
            self._service.wait()
            self._service = None

    def configure(self, pod: str, text: str) -> None:
        """Write the configuration of *pod*."""
        file = self.places.config(pod)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def root(self, pod: str) -> Path:
        """Where the root of *pod* is mounted."""
        return self.prefix / "autopod" / pod / "root"

    def living(self, pod: str) -> int:
        """How many processes *pod* has here."""
        found = pods.find(self.places, pod)
        return len(enter.pids(found)) if found else 0

    def end(self) -> list[str]:
        """Take everything away; return what the commands had left that they should not."""
        self.stop_service()
        for pod in pods.names(self.places):
            self.run("autopod", "rm", pod, "--purge")
        deadline = time.monotonic() + GRACE_S
        while (left := leftovers.everything(self.prefix)) and time.monotonic() < deadline:
            time.sleep(0.01)
        if left:
            leftovers.remove(self.prefix)
        self.holder.kill()
        self.holder.wait()
        shutil.rmtree(self.prefix)
        return left


def apart() -> "subprocess.Popen[bytes]":
    """Return a process that holds a new network namespace, until it is killed."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    own = Path("/proc/self/ns/net")
    wait_until(lambda: not own.samefile(f"/proc/{holder.pid}/ns/net"), "a network namespace")
    return holder


@contextlib.contextmanager
def pair(make: type[Machine] = Machine) -> Iterator[tuple[Machine, Machine]]:
    """Hosts a and b with a wire between them, that know each other.

    Args:
        make: what kind of host they are.

    Raises:
        Failed: their commands have left something behind.
    """
    left: list[str] = []
    with contextlib.ExitStack() as undo:
        machines = []
        for number, name in enumerate("ab", 1):
            machines.append(machine := make(name, number))
            undo.callback(lambda machine=machine: left.extend(machine.end()))
        a, b = machines
        ends = [("netns", str(machine.holder.pid)) for machine in machines]
        wire = [*ends[0], "type", "veth", "peer", "name", "wire", *ends[1]]
        subprocess.run(["ip", "link", "add", "wire", *wire], check=True)
        for machine in machines:
            machine.run("ip", "link", "set", "lo", "up")
            machine.run("ip", "addr", "add", f"{machine.address}/24", "dev", "wire")
            machine.run("ip", "link", "set", "wire", "up")
            introduce(machine)
        join(a, b)
        yield a, b
    if left:
        raise Failed("left behind:\n" + "\n".join(left))


def introduce(machine: Machine) -> None:
    """Give a host its name and key, and start its service."""
    identity = ("--name", machine.name, "--address", machine.address)
    machine.run("autopod", "host", "init", *identity)
    machine.serve()


def join(one: Machine, other: Machine) -> None:
    """Make two hosts known to each other."""
    *_, words = one.run("autopod", "host", "invite").split(maxsplit=3)
    other.run("autopod", "host", "join", *words.split())


@contextlib.contextmanager
def routed(*names: str, make: type[Machine] = Machine) -> Iterator[tuple[tuple[Machine, ...], str]]:
    """Hosts that know each other, each on a network of its own, 10.7.N.0/24, and a router.

    Yields:
        The hosts, and the path of the network namespace of a client, 10.7.0.1.

    Raises:
        Failed: their commands have left something behind.
    """
    left: list[str] = []
    with contextlib.ExitStack() as undo:
        router, client = apart(), apart()
        for holder in (router, client):
            undo.callback(holder.wait)
            undo.callback(holder.kill)
        _inside(router.pid, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        _plug(router.pid, "client", "10.7.0", client.pid)
        machines = []
        for number, name in enumerate(names, 1):
            machines.append(machine := make(name, 1, f"10.7.{number}"))
            undo.callback(lambda machine=machine: left.extend(machine.end()))
            _plug(router.pid, f"to-{name}", f"10.7.{number}", machine.holder.pid)
            introduce(machine)
        for number, machine in enumerate(machines):
            for other in machines[:number]:
                join(other, machine)
        yield tuple(machines), f"/proc/{client.pid}/ns/net"
    if left:
        raise Failed("left behind:\n" + "\n".join(left))


def _plug(router: int, port: str, network: str, host: int) -> None:
    """Connect two network namespaces, by processes in them: *network*.254 and *network*.1."""
    peer = ("peer", "name", "wire", "netns", str(host))
    _inside(router, "ip", "link", "add", port, "type", "veth", *peer)
    for pid, name, number in ((router, port, 254), (host, "wire", 1)):
        _inside(pid, "ip", "link", "set", "lo", "up")
        _inside(pid, "ip", "addr", "add", f"{network}.{number}/24", "dev", name)
        _inside(pid, "ip", "link", "set", name, "up")
    _inside(host, "ip", "route", "add", "default", "via", f"{network}.254")


def _inside(pid: int, *argv: str) -> None:
    subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", *argv], check=True)


@contextlib.contextmanager
def switch(machines: tuple[Machine, Machine], *addresses: str) -> Iterator[str]:
    """A third host, which has *addresses*, and a switch that joins it to the pods' bridges.

    Yields:
        The path of its network namespace.
    """
    holder = apart()
    netns = f"/proc/{holder.pid}/ns/net"

    def ip(there: str, *words: str) -> None:
        subprocess.run(["nsenter", f"--net={there}", "ip", *words], check=True)

    client_ip = functools.partial(ip, netns)

    try:
        client_ip("link", "add", "switch", "type", "bridge")
        client_ip("link", "set", "switch", "up")
        for address in addresses:
            options = ("nodad",) if ":" in address else ()
            client_ip("addr", "add", address, "dev", "switch", *options)
        for machine in machines:
            bridge = bridge_name(machine.places)
            machine.run("ip", "link", "add", bridge, "type", "bridge")
            peer = ("peer", "name", f"to-{machine.name}", "netns", str(holder.pid))
            there = f"/proc/{machine.holder.pid}/ns/net"
            ip(there, "link", "add", "uplink", "type", "veth", *peer)
            machine.run("ip", "link", "set", "uplink", "master", bridge, "up")
            machine.run("ip", "link", "set", bridge, "up")
            client_ip("link", "set", f"to-{machine.name}", "master", "switch", "up")
        yield netns
        for machine in machines:
            machine.run("ip", "link", "del", bridge_name(machine.places))
    finally:
        holder.kill()
        holder.wait()
