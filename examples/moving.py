"""A service moves between two hosts again and again, while its clients go on.

Two hosts and a client's are network namespaces on this machine, joined by a switch. The exit status
is 0 only if every answer was right and no connection was closed.
"""

import argparse
import contextlib
import os
import shlex
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from examples import apart, hosts
from examples.clients import Clients
from examples.exim.mail import wait_until
from examples.hosts import Machine
from examples.roots import in_network
from examples.transcript import Failed, Transcript, status
from launcher import wall

CLIENT = "10.98.0.2/16"


@dataclass(frozen=True, slots=True)
class Service:
    """What moves.

    Attributes:
        pod: its name; examples/POD/ has its pod.toml and build.py.
        program: what runs in it.
        prepare: called with the pod's root before that.
        connect: adds all clients, in the network namespace from which they reach the pod; an
            OSError of the first says that the service is not there yet.
        clients: how many there are.
    """

    pod: str
    program: str
    prepare: Callable[[Path], None]
    connect: Callable[[Clients], None]
    clients: int


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a demonstration, with what all have."""
    made = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    made.add_argument("--moves", type=int, default=4, metavar="N", help="how often it moves (4)")
    return made


def main(title: str, service: Service, moves: int) -> int:
    """Run the demonstration; return the exit status."""
    return status("demo", partial(_run, title, service, moves))


def _run(title: str, service: Service, moves: int) -> None:
    outside = apart.leave_host()
    try:
        base = in_network(outside, f"examples.{service.pod}.build")
        demo = Demo(title, service)
        with hosts.pair() as machines, hosts.switch(machines, CLIENT) as netns:
            demo.run(base, machines, netns, moves)
        demo.out.end()
    finally:
        os.close(outside)


class Demo:
    """The steps, and what they must remember for each other."""

    def __init__(self, title: str, service: Service) -> None:
        self.service = service
        self.clients = Clients()
        self.out = Transcript(title, shorten={})

    def run(self, base: Path, machines: tuple[Machine, Machine], netns: str, moves: int) -> None:
        """Take every step in order."""
        source, target = machines
        self._start(source, base)
        pauses = []
        try:
            self._connect(source, netns)
            for number in range(1, moves + 1):
                pauses.append(self._move(source, target, number))
                source, target = target, source
        finally:
            seen = self.clients.end()
        with self.out.step("The clients are done"):
            self.out.check(not seen.failures, "no connection was closed", seen.failures[:1])
            self.out.check(seen.answers, f"{seen.answers} answers, and all were right")
            if pauses:
                median, longest = statistics.median(pauses) * 1e3, max(pauses) * 1e3
                self.out.say(f"longest waits: {median:.0f} ms (median), {longest:.0f} ms (most)")

    def _start(self, machine: Machine, base: Path) -> None:
        pod = self.service.pod
        machine.configure(pod, (Path(__file__).parent / pod / "pod.toml").read_text())
        with self.out.step(f"The pod is added at host {machine.name} and its program started"):
            self._run(machine, "autopod", "add", pod, "--base", base)
            self.service.prepare(machine.root(pod))
            self._run(machine, "autopod", "addproc", pod, self.service.program)

    def _connect(self, machine: Machine, netns: str) -> None:
        title = f"{self.service.clients} clients connect, from a third host"
        with self.out.step(title), open(netns) as there, wall.inside(there.fileno()):
            try:
                wait_until(self._connected, "the service answers")
            except TimeoutError:
                self._run(machine, "launcher", "logs", self.service.pod)
                raise
            wait_until(lambda: self._goes_on(self.service.clients), "all are answered")
            self.out.say(f"slowest answer so far: {self.clients.take_slowest() * 1e3:.0f} ms")

    def _connected(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            self.service.connect(self.clients)
            return True
        return False

    def _move(self, source: Machine, target: Machine, number: int) -> float:
        """Move the pod; return the longest that a client waited meanwhile, in seconds."""
        pod = self.service.pod
        with self.out.step(f"Move {number}: from host {source.name} to host {target.name}"):
            self.clients.take_slowest()
            self._run(source, "autopod", "migrate", pod, target.name)
            enough = self.clients.seen.answers + 2 * self.service.clients
            wait_until(lambda: self._goes_on(enough), "they are answered again")
            pause = self.clients.take_slowest()
            self.out.say(f"longest that a client waited: {pause * 1e3:.0f} ms")
            alone = target.living(pod) and not source.living(pod)
            self.out.check(alone, f"it lives at {target.name}, and there alone")
            return pause

    def _goes_on(self, enough: int) -> bool:
        if self.clients.seen.failures:
            raise Failed(f"a client has failed: {self.clients.seen.failures[0]}")
        return self.clients.seen.answers >= enough

    def _run(self, machine: Machine, *argv: str | Path) -> None:
        self.out.say(f"{machine.name}$ {shlex.join(map(os.fspath, argv))}")
        self.out.say(machine.run(*argv))
