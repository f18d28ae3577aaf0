"""Part 1: a security update rolls through the hosts, one at a time, while their pods are asked."""

import contextlib
import itertools
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from autopod.status import store
from examples.apache import demo as apache
from examples.apache import load
from examples.clients import Clients
from examples.exim.mail import wait_until
from examples.transcript import Failed, Transcript
from tests.fleet.host import Host, three
from tests.fleet.lan import Lan
from tests.fleet.load import Mails, delivered
from tests.fleet.witness import Witness
from tests.kernel.autopod import repository
from tests.kernel.autopod.repository import ACT, NEW, Keys, install, new_kernel

BROWSERS, DOWNLOADS, WRITERS = 10, 2, 3
ADDRESSES = {"exim": "10.98.0.10", "apache": apache.ADDRESS}
PORTS = {"exim": 25, "apache": 80}
PROGRAMS = {"exim": "/usr/sbin/exim4", "apache": "/usr/sbin/apache2"}
EXAMPLES = Path(__file__).parents[2] / "examples"
CONTENT = bytes(range(256)) * 20_000
EVERY_S = 5
INSTALL = "#!/bin/sh\ncp {0}/status.new {0}/status\n"
REBOOT = "#!/bin/sh\ntouch {0}/told-to-reboot\n"
_LONG_S = 900


class Load:
    """Clients of both pods."""

    def __init__(self, lan: Lan) -> None:
        self._lan = lan
        self.web, self.mail = Clients(), Clients()
        self.mails = Mails(ADDRESSES["exim"], self.mail, lan.inside)

    def begin(self) -> None:
        """Let all connect, and ask."""
        page = (EXAMPLES / "apache/www/index.html").read_bytes()
        with self._lan.inside():
            for _ in range(BROWSERS):
                load.browse(self.web, ADDRESSES["apache"], page, 0.1)
            for _ in range(DOWNLOADS):
                load.download(self.web, ADDRESSES["apache"], CONTENT, 5e5)
        for number in range(WRITERS):
            self.mails.correspond(f"writer{number}", 0.3)
        self.mails.knock("stranger", 1.0)

    def failures(self) -> list[str]:
        """Return what has gone wrong so far."""
        return [*self.web.seen.failures, *self.mail.seen.failures]

    def end(self) -> None:
        """Let what was begun be finished."""
        self.web.end()
        self.mail.end()


class Reboots:
    """A thread that reboots hosts which have told so; each in a thread of its own.

    Attributes:
        down: when which host was down: name, from, until, of time.monotonic().
    """

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts, self._over = hosts, threading.Event()
        self._pool, self._running = ThreadPoolExecutor(), dict[str, Future[None]]()
        self.down: list[tuple[str, float, float]] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        """Wait for those that go on.

        Raises:
            Exception: a reboot has failed.
        """
        self._over.set()
        self._thread.join()
        self._pool.shutdown()

    def check(self) -> None:
        """Raise what a reboot has raised."""
        for future in list(self._running.values()):
            if future.done():
                future.result()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            for host in self._hosts.values():
                order = host.prefix / "told-to-reboot"
                if order.exists():
                    order.unlink()
                    self._running[host.name] = self._pool.submit(self._reboot, host)

    def _reboot(self, host: Host) -> None:
        began = time.monotonic()
        host.reboot(NEW)
        self.down.append((host.name, began, time.monotonic()))


@contextlib.contextmanager
def archive() -> Iterator[repository.Repository]:
    """Yield a signed archive of updates, which has nothing new."""
    with tempfile.TemporaryDirectory(prefix="autopod-archive-") as scratch:
        home = Path(scratch)
        (home / "keys").mkdir()
        keys = Keys(home / "keys")
        try:
            yield repository.with_old_kernel(home / "archive", keys)
        finally:
            keys.close()


def prepare(host: Host, updates: repository.Repository) -> None:
    """Let a host look for updates, install them and reboot by itself."""
    repository.use(host.prefix, updates)
    policy = (host.prefix / "etc/autopod/autopod.toml").read_text()
    policy = policy.replace("every_s = 0", f"every_s = {EVERY_S}")
    fleet = host.policy[host.policy.index("[fleet]") :]
    host.policy = f"{policy}{ACT.format(host.prefix)}\n{fleet}"
    for name, text in (("install", INSTALL), ("reboot", REBOOT)):
        (host.prefix / name).write_text(text.format(host.prefix))
        (host.prefix / name).chmod(0o755)


def start(host: Host, pod: str, base: Path) -> None:
    """Add a pod of the examples, and start its program."""
    host.configure(pod, (EXAMPLES / pod / "pod.toml").read_text())
    host.run("autopod", "add", pod, "--base", base)
    if pod == "apache":
        number = BROWSERS + DOWNLOADS
        with (host.root(pod) / "etc/apache2/apache2.conf").open("a") as file:
            file.write(apache.PATIENT.format(threads=number, all_threads=3 * number))
        (host.root(pod) / "var/www/html/big").write_bytes(CONTENT)
    host.run("autopod", "addproc", pod, PROGRAMS[pod])


class Update:
    """The steps."""

    def __init__(self, bases: Mapping[str, Path]) -> None:
        self._bases = bases
        self.out = Transcript(
            "AutoPod: a security update rolls through three hosts, whose pods are asked meanwhile.",
            shorten={},
        )

    def run(self) -> None:
        """Take every step in order.

        Raises:
            Failed: something does not hold.
        """
        with self.out.step("Three hosts, each with a member of etcd and the service"):
            stack = contextlib.ExitStack()
            lan, hosts, _ = stack.enter_context(three())
        with stack:
            updates = stack.enter_context(archive())
            witness = Witness({name: host.prefix for name, host in hosts.items()})
            stack.callback(witness.end)
            self._start(hosts, updates)
            work = Load(lan)
            try:
                with self.out.step("Clients connect"):
                    self._connect(lan, work)
                self._roll(hosts, updates, work)
            except BaseException:
                explain(hosts)
                raise
            finally:
                work.end()
            self._count(hosts, work, witness)
        self.out.end()

    def _start(self, hosts: Mapping[str, Host], updates: repository.Repository) -> None:
        with self.out.step("The services look for updates; a mail server at a, a web server at b"):
            for host in hosts.values():
                host.stop_service()
                prepare(host, updates)
                host.serve()
            start(hosts["a"], "exim", self._bases["exim"])
            start(hosts["b"], "apache", self._bases["apache"])

    def _connect(self, lan: Lan, work: Load) -> None:
        wait_until(lambda: listens(lan, "exim"), "Exim listens")
        wait_until(lambda: listens(lan, "apache"), "Apache listens")
        work.begin()
        enough = 5 * (BROWSERS + DOWNLOADS)
        wait_until(lambda: work.web.seen.answers > enough, "all are answered")
        wait_until(lambda: len(work.mails.accepted()) > 2 * WRITERS, "mails are accepted")
        self.out.say(
            f"{len(work.web)} of the web server, {len(work.mail)} of the mail server; slowest "
            f"answers so far: {work.web.take_slowest() * 1e3:.0f} ms and "
            f"{work.mail.take_slowest() * 1e3:.0f} ms"
        )

    def _roll(self, hosts: Mapping[str, Host], updates: repository.Repository, work: Load) -> None:
        reboots = Reboots(hosts)
        try:
            with self.out.step("A new kernel is published; nobody does anything more"):
                new_kernel(updates)
                for host in hosts.values():
                    install(host.prefix / "status.new", updates, NEW, "6.1.158-1")
                updates.publish()

                def is_done() -> bool:
                    reboots.check()
                    if work.failures():
                        raise Failed(f"a request has failed: {work.failures()[0]}")
                    return len(reboots.down) == len(hosts) and all(map(is_updated, hosts.values()))

                wait_until(is_done, "all hosts are updated", _LONG_S)
                for name, began, ended in sorted(reboots.down, key=lambda one: one[1]):
                    self.out.say(f"{name} was down for {ended - began:.1f} s")
                moved = [line for line in happened(hosts["a"], "owner") if "was at" in line]
                self.out.say("\n".join(moved))
        finally:
            reboots.end()
        with self.out.step("One after the other"):
            downs = sorted((began, ended) for _, began, ended in reboots.down)
            apart = all(one[1] < other[0] for one, other in itertools.pairwise(downs))
            self.out.check(apart, "never were two hosts down at a time")
            turns = happened(hosts["a"], "slot")
            self.out.say("\n".join(turns))
            self.out.check(taken_in_turn(turns, len(hosts)), "never had two hosts a slot at a time")
            for host in hosts.values():
                self.out.check(is_updated(host), f"{host.name} runs kernel {NEW}, as expected")

    def _count(self, hosts: Mapping[str, Host], work: Load, witness: Witness) -> None:
        with self.out.step("The clients are done"):
            self.out.check(not work.failures(), "no request has failed", work.failures()[:3])
            accepted = work.mails.accepted()
            [there] = witness.where("exim")
            root = hosts[there].root("exim")
            wait_until(lambda: accepted <= delivered(root).keys(), "all mails are delivered")
            found = delivered(root)
            twice = [subject for subject, count in found.items() if count > 1]
            self.out.check(not twice, f"{len(accepted)} mails, each in the mailbox once", twice[:3])
            self.out.say(f"connections for mails that were tried again: {work.mails.again}")
            self.out.check(work.web.seen.answers, f"{work.web.seen.answers} pages, all right")
            self.out.check(not witness.twice, "no pod ever ran twice", witness.twice[:3])
            self.out.say(
                f"longest that a browser waited: {work.web.take_slowest() * 1e3:.0f} ms; "
                f"a sender of mails: {work.mail.take_slowest() * 1e3:.0f} ms"
            )


def listens(lan: Lan, pod: str) -> bool:
    """Can a client connect to a pod?"""
    with lan.inside(), contextlib.suppress(OSError):
        socket.create_connection((ADDRESSES[pod], PORTS[pod]), timeout=5).close()
        return True
    return False


def is_updated(host: Host) -> bool:
    """Does the new kernel run, and has the drain come to a good end?"""
    if NEW not in (host.prefix / "running").read_text():
        return False
    with store.opened(host.places) as record:
        last = record.last_drain()
    return last is not None and (last.phase, last.failed, last.slot) == ("done", None, None)


def happened(host: Host, kind: str) -> list[str]:
    """Return what has happened to slots, or owners: written in the transactions that did it."""
    events = json.loads(host.run("autopod", "fleet", "--json"))["events"]
    return [event["text"] for event in events if event["kind"] == kind]


def taken_in_turn(turns: list[str], hosts: int) -> bool:
    """Does each host take a slot once and give it back before the next? Pure."""
    names = [line.partition(" ")[0] for line in turns]
    verbs = [line.split(" ")[1] for line in turns]
    pairs = list(zip(names[::2], names[1::2], strict=False))
    return (
        len(turns) == 2 * hosts
        and verbs == ["takes", "gives"] * hosts
        and all(one == other for one, other in pairs)
        and len({one for one, _ in pairs}) == hosts
    )


def explain(hosts: Mapping[str, Host]) -> None:
    """Print the ends of the hosts' logs, and keep all of them."""
    kept = Path(tempfile.mkdtemp(prefix="autopod-fleet-logs-"))
    for host in hosts.values():
        for log in host.logs():
            shutil.copy(log, kept)
        print(f"--- {host.name}")
        print("\n".join(host.logs()[0].read_text().splitlines()[-40:]))
    print(f"all of it: {kept}")
