"""A host of the fleet, with a member of etcd and the service: it can die, and be booted again."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from examples import leftovers
from examples.exim.mail import wait_until
from examples.hosts import Machine
from examples.transcript import BIN, Failed
from tests.fleet.lan import Lan
from tests.kernel.autopod.repository import OLD
from tests.kernel.fleet import etcd

NAMES = "abc"
TTL_S = 15
GUARD = '#!/bin/sh\nPATH={}:$PATH exec autopod fleet claim "$1"\n'
FLEET = """
[fleet]
endpoints = {endpoints}
ca = "{ca}"
certificate = "{certificate}"
key = "{key}"
ttl_s = {ttl_s}
recover = "{shared}"
"""
KERNEL = "{} #1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (2026-11-01)\n"
_CALM_S = 60


class Certificates:
    """What the members of etcd and the hosts know each other by, and where that is."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.addresses = {name: f"192.0.2.{number}" for number, name in enumerate(NAMES, 1)}
        authority = etcd.Authority(home)
        self.ca = authority.ca
        self.member = authority.issue("member", *self.addresses.values())
        self.host = authority.issue("host")

    def command(self, name: str) -> list[str]:
        """Return the command of a host's member."""
        client = f"https://{self.addresses[name]}:2379"
        peers = {one: f"https://{address}:2380" for one, address in self.addresses.items()}
        return etcd.command(self.home, name, client, peers, (self.ca, *self.member))

    def policy(self, shared: Path) -> str:
        """Return what belongs to a host's policy."""
        endpoints = [f"https://{address}:2379" for address in self.addresses.values()]
        certificate, key = self.host
        return FLEET.format(
            endpoints=endpoints,
            ca=self.ca,
            certificate=certificate,
            key=key,
            ttl_s=TTL_S,
            shared=shared,
        )


class Host(Machine):
    """It keeps its disk when it dies, and nothing else.

    Attributes:
        policy: its autopod.toml.
        alive: it was booted, and has not died.
    """

    def __init__(self, name: str, lan: Lan, certificates: Certificates) -> None:
        """Make it; boot() lets it live."""
        super().__init__(name, NAMES.index(name) + 1)
        self.lan, self._certificates = lan, certificates
        self._log = self.logs()[0].open("ab")
        self._member: subprocess.Popen[bytes] | None = None
        self._boots = itertools.count(1)
        self.policy, self.alive, self._is_new = "", False, True
        guard = self.places.guard()
        guard.parent.mkdir(parents=True, exist_ok=True)
        guard.write_text(GUARD.format(BIN))
        guard.chmod(0o755)

    def boot(self, kernel: str = OLD, *, serve: bool = True) -> None:
        """Let it come up, with all that an enabled unit would start."""
        if not self._is_new:
            self.holder = self.hold()
        self._is_new = False
        (self.prefix / "boot").write_text(f"boot {next(self._boots)}\n")
        (self.prefix / "running").write_text(KERNEL.format(kernel))
        self.lan.join(self)
        self.alive = True
        self.start_member()
        if serve:
            self.serve()

    def serve(self, more: str = "") -> None:
        """Start the service; it listens when this returns."""
        file = self.prefix / "etc/autopod/autopod.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.policy + more)
        argv = self.command("autopod", "statusd")
        self._service = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=self._log)
        wait_until(self.listens, "the service listens", 300)

    def die(self) -> None:
        """Let the power fail: no packet more, no process more; what was in memory is gone."""
        self.lan.cut(self)
        self.alive = False
        for group in leftovers.control_groups(self.prefix):
            with contextlib.suppress(OSError):
                (group / "cgroup.kill").write_text("1")
        self.kill_member()
        self.stop_service(signal.SIGKILL)
        wait_until(self._is_gone, f"host {self.name} has died")
        self.holder.kill()
        self.holder.wait()
        shutil.rmtree(self.prefix / "run", ignore_errors=True)

    def reboot(self, kernel: str) -> None:
        """Go down as an init system goes down, and come up with *kernel*."""
        self.stop_service()
        self.die()
        self.boot(kernel)

    def start_member(self) -> None:
        """Start its member of etcd."""
        argv = [*self.into(), *self._certificates.command(self.name)]
        with self.logs()[1].open("ab") as out:
            self._member = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={"PATH": os.environ["PATH"]},
            )

    def kill_member(self) -> None:
        """Kill its member of etcd."""
        if self._member:
            self._member.kill()
            self._member.wait()
            self._member = None

    def kill_agent(self) -> None:
        """Kill who keeps the host in the fleet; its service starts another one."""
        for pid in self.processes("autopod.fleet.agent"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_service(self) -> None:
        """Kill the service and its agent at one moment."""
        if self._service:
            self._service.send_signal(signal.SIGSTOP)  # it starts no other agent
        self.kill_agent()
        self.stop_service(signal.SIGKILL)

    def member_is_dead(self) -> bool:
        """Was its member of etcd killed?"""
        return self._member is None

    def restarts(self, pod: str) -> bool:
        """Does a process of it restart *pod* from a checkpoint?"""
        return any(pod in words for words in self.processes("autopod.fleet.restart").values())

    def processes(self, word: str) -> dict[int, list[str]]:
        """Return the command lines of its processes that have *word* in them, by their numbers."""
        mark = f"AUTOPOD_PREFIX={self.prefix}".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if word.encode() in words and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = [os.fsdecode(one) for one in words]
        return found

    def begin(self, *argv: str | Path) -> "subprocess.Popen[bytes]":
        """Begin to run *argv* on this host; what it says goes to the host's log."""
        return subprocess.Popen(
            self.command(*argv), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def logs(self) -> list[Path]:
        """Return where its service and commands, and its member of etcd, say what they do."""
        home = self._certificates.home
        return [home / f"{self.name}.log", home / f"{self.name}.etcd.log"]

    def close(self) -> list[str]:
        """Take everything away; return what the commands had left that they should not."""
        if not self.alive:
            self.boot(serve=False)
        self.stop_service()
        try:
            return self.end()
        finally:
            self.kill_member()
            self._log.close()

    def _is_gone(self) -> bool:
        leftovers.remove(self.prefix)
        return not leftovers.everything(self.prefix)


@contextlib.contextmanager
def three() -> Iterator[tuple[Lan, Mapping[str, Host], Path]]:
    """Hosts a, b and c, that know each other; the services of none run yet.

    Yields:
        What joins them; the hosts by name; a directory that all have.

    Raises:
        Failed: their commands have left something behind.
    """
    left: list[str] = []
    with contextlib.ExitStack() as undo:
        home = Path(tempfile.mkdtemp(prefix="autopod-fleet-"))
        undo.callback(shutil.rmtree, home)
        certificates, lan = Certificates(home), Lan()
        undo.callback(lan.end)
        hosts = {}
        for name in NAMES:
            hosts[name] = host = Host(name, lan, certificates)
            undo.callback(lambda host=host: left.extend(host.close()))
            host.policy = f"[service]\nevery_s = 0\n{certificates.policy(home / 'shared')}"
            host.boot(serve=False)
            identity = ("--name", name, "--address", host.address)
            host.run("autopod", "host", "init", *identity)
        wait_until(lambda: _answers(hosts["a"]), "etcd answers", _CALM_S)
        for host in hosts.values():
            host.serve()
        for one, other in itertools.combinations(hosts.values(), 2):
            *_, join = one.run("autopod", "host", "invite").split(maxsplit=3)
            other.run("autopod", "host", "join", *join.split())
        yield lan, hosts, home
    if left:
        raise Failed("left behind:\n" + "\n".join(left))


def _answers(host: Host) -> bool:
    (host.prefix / "etc/autopod/autopod.toml").write_text(host.policy)
    return "error" not in host.run("autopod", "fleet", expect=None)
