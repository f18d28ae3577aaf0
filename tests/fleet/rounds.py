"""Part 2: members of etcd, agents, hosts are killed at random moments; each pod lives on, once."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from examples.exim.mail import wait_until
from examples.transcript import Failed
from tests.fleet.chance import Round, draw
from tests.fleet.host import TTL_S, Host, three
from tests.fleet.lan import Lan
from tests.fleet.update import PROGRAMS, explain, listens, start
from tests.fleet.witness import Witness

ELECTION_S = 5
WORK_S = 30
"""For a restart, on a machine on which everything else runs, too."""
LIMIT_S = ELECTION_S + TTL_S + 1.5 * TTL_S + TTL_S / 6 + WORK_S
"""An election, the lease, half of it and once more for each host that is to try before; a beat."""
_WATCHED_S = {"member": 0.8 * TTL_S, "network": 0.8 * TTL_S, "host": 3, "agent": 6, "service": 6}
"""For how long it is looked on after all pods run: a fence freezes after two thirds of a lease."""
_READY_S = 180


class Violated(Failed):
    """A pod ran twice, or nowhere for too long."""


class Rounds:
    """The rounds, and what they must remember for each other."""

    def __init__(self, bases: Mapping[str, Path], seed: int, count: int) -> None:
        self._bases, self._seed, self._count = bases, seed, count

    def run(self) -> None:
        """Do all of them.

        Raises:
            Failed: something does not hold.
        """
        print(f"{self._count} rounds, seed {self._seed}; a lease lasts {TTL_S} s", flush=True)
        with three() as (lan, hosts, _):
            witness = Witness({name: host.prefix for name, host in hosts.items()})
            try:
                self._run(lan, hosts, witness)
            except BaseException:
                explain(hosts)
                raise
            finally:
                witness.end()

    def _run(self, lan: Lan, hosts: Mapping[str, Host], witness: Witness) -> None:
        for host, pod in zip(hosts.values(), PROGRAMS, strict=False):
            start(host, pod, self._bases[pod])
        began, violations, pauses = time.monotonic(), 0, list[float]()
        for number in range(1, self._count + 1):
            scene = Scene(lan, hosts, witness)
            scene.make_ready()
            drawn = draw(self._seed, number, scene.where())
            said, before = "", time.monotonic()
            try:
                scene.play(drawn)
            except Violated as e:
                violations += 1
                said = f"  VIOLATED: {e}"
            pauses += scene.pauses.values()
            print(f"{number:3}  {told(drawn, scene)}  [{time.monotonic() - before:.0f} s]{said}")
            if said:
                explain(hosts)
            scene.restore()
        print(
            f"\n{self._count} rounds in {(time.monotonic() - began) / 60:.0f} min, seed "
            f"{self._seed}: {violations} violations; the witness looked {witness.looks} times; "
            f"the longest that a pod ran nowhere: {max(pauses):.1f} s (allowed {LIMIT_S:.0f} s)"
        )
        if violations:
            raise Failed(f"{violations} of {self._count} rounds went wrong")


def told(drawn: Round, scene: "Scene") -> str:
    """Return a round in words."""
    what = {
        "idle": "idle",
        "checkpoint": f"checkpoint of {drawn.pod}",
        "migration": f"{drawn.pod} to {drawn.target}",
        "recovery": f"{drawn.pod}'s host {scene.before[drawn.pod]} dead",
    }[drawn.moment]
    now = ", ".join(
        f"{pod} {was}→{''.join(scene.after.get(pod, [])) or '-'} {scene.pauses.get(pod, 0):.1f} s"
        for pod, was in scene.before.items()
    )
    return f"{what}: {drawn.kind} of {drawn.victim} after {drawn.delay_s:.2f} s: {now}"


class Scene:
    """One round.

    Attributes:
        before: where the pods ran at first.
        after: where they run in the end.
        pauses: for how long each ran nowhere.
    """

    def __init__(self, lan: Lan, hosts: Mapping[str, Host], witness: Witness) -> None:
        self._lan, self._hosts, self._witness = lan, hosts, witness
        self._command: subprocess.Popen[bytes] | None = None
        self._cut: Host | None = None
        self.before: dict[str, str] = {}
        self.after: dict[str, list[str]] = {}
        self.pauses: dict[str, float] = {}

    def where(self) -> dict[str, str]:
        """Return where the pods run.

        Raises:
            ValueError: one runs nowhere, or twice.
        """
        return {pod: host for pod in PROGRAMS for [host] in [self._witness.where(pod)]}

    def make_ready(self) -> None:
        """See to it that each pod runs, and could be restarted elsewhere."""
        wait_until(self._is_whole, "the fleet is whole", _READY_S)
        self.before = self.where()
        for pod, name in self.before.items():
            self._tidy(pod, name)
            self._hosts[name].run("autopod", "checkpoint", pod, "--keep", "3")
        wait_until(self._is_whole, "the fleet is whole", _READY_S)
        for pod in self.before:
            self._witness.take_pause(pod)

    def play(self, drawn: Round) -> None:
        """Kill something, and look what becomes of it.

        Raises:
            Violated: a pod ran twice, or nowhere for too long.
        """
        at = self._hosts[self.before[drawn.pod]]
        victim = self._hosts[drawn.victim]
        if drawn.moment == "migration":
            self._command = at.begin("autopod", "migrate", drawn.pod, drawn.target)
        elif drawn.moment == "checkpoint":
            self._command = at.begin("autopod", "checkpoint", drawn.pod, "--keep", "3")
        elif drawn.moment == "recovery":
            at.die()
            victim = self._wait_for_restart(drawn, victim)
        time.sleep(drawn.delay_s)  # the random moment
        self._kill(drawn, victim)
        if drawn.moment == "recovery" and drawn.kind in ("member", "host", "network"):
            at.boot()  # or no majority of etcd is left
        self._wait_for_pods(drawn)

    def restore(self) -> None:
        """Bring back what was killed."""
        if self._command:
            self._command.wait(_READY_S)
        for host in self._hosts.values():
            if not host.alive:
                host.boot()
            if host.member_is_dead():
                host.start_member()
        if self._cut:
            self._lan.mend(self._cut)
        for pod in PROGRAMS:
            if not self._witness.where(pod):
                self._rescue(pod)

    def _kill(self, drawn: Round, victim: Host) -> None:
        match drawn.kind:
            case "member":
                victim.kill_member()
            case "agent":
                victim.kill_agent()
            case "service":  # as systemd does: Restart=always, after 100 ms
                victim.kill_service()
                victim.serve()
            case "host":
                victim.die()
            case "network":
                self._cut = victim
                self._lan.cut(victim)

    def _wait_for_restart(self, drawn: Round, victim: Host) -> Host:
        """Wait until a host restarts the pod; return at which one something is killed."""
        living = [host for host in self._hosts.values() if host.alive]
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            for host in living:
                if host.restarts(drawn.pod):
                    return host if drawn.follows else victim
            if self._witness.where(drawn.pod):
                return victim
        raise Violated(f"nobody restarts {drawn.pod}")

    def _wait_for_pods(self, drawn: Round) -> None:
        """Wait until each pod runs, and some more."""
        try:
            wait_until(self._all_run, "", LIMIT_S)
        except TimeoutError:
            missing = [pod for pod in PROGRAMS if not self._witness.where(pod)]
            raise Violated(f"nowhere after {LIMIT_S:.0f} s: {', '.join(missing)}") from None
        finally:
            time.sleep(_WATCHED_S[drawn.kind])
            self.after = {pod: self._witness.where(pod) for pod in PROGRAMS}
            self.pauses = {pod: self._witness.take_pause(pod) for pod in PROGRAMS}
            twice = list(self._witness.twice)
            self._witness.twice.clear()
        if twice:
            raise Violated(f"twice: {twice[0]} (seen {len(twice)} times)")

    def _all_run(self) -> bool:
        return bool(self._witness.twice) or all(
            self._witness.where(pod) and listens(self._lan, pod) for pod in PROGRAMS
        )

    def _is_whole(self) -> bool:
        """Is each host a member, and each pod armed where it runs, and its owner's?"""
        if any(len(self._witness.where(pod)) != 1 for pod in PROGRAMS):
            return False
        said = self._hosts["a"].run("autopod", "fleet", "--json", expect=None)
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(said)
            members = [member["name"] for member in found["members"]]
            owners = {pod: owner["host"] for pod, owner in found["pods"].items()}
            return (
                members == sorted(self._hosts)
                and sorted(found["armed"]) == sorted(PROGRAMS)
                and owners == self.where()
            )
        return False

    def _tidy(self, pod: str, owner: str) -> None:
        """Remove what a host has of a pod that lives on elsewhere, as an administrator does."""
        for name, host in self._hosts.items():
            if name != owner and pod in pods_of(host):
                host.run("autopod", "rm", pod, "--purge")

    def _rescue(self, pod: str) -> None:
        """Start a pod by hand where it is to be: so that the next round can begin."""
        found = json.loads(self._hosts["a"].run("autopod", "fleet", "--json"))["pods"]
        host = self._hosts[found[pod]["host"] if pod in found else "a"]
        [*_, newest] = json.loads(host.run("autopod", "checkpoints", pod, "--json"))
        host.run("autopod", "restart", pod, "--replace", "-i", newest["file"], expect=None)


def pods_of(host: Host) -> Iterable[str]:
    """Return the pods of which a host has something."""
    return [row["pod"] for row in json.loads(host.run("autopod", "list", "--json"))]
