"""`make test-pacemaker`: a cluster of two nodes, in which Pacemaker says where a pod runs.

A database with clients, which notice every answer that is wrong and every connection that is
closed. The exit status is 0 only if everything held.
"""

import os
import sys
from collections.abc import Callable

from examples import apart, hosts, transcript
from examples.exim.mail import wait_until
from examples.hosts import Machine
from examples.moving import CLIENT, Demo
from examples.redis.demo import service
from examples.roots import in_network
from examples.transcript import BIN, Failed
from tests.pacemaker.node import AGENT, Node

TITLE = (
    "AutoPod under Pacemaker: a database moves with crm_resource, and its clients go on writing."
)
POD = "redis"
PROPERTIES = ("stonith-enabled=false",)  # in namespaces there is nothing to switch off
BOTH = "Online: [ node-a node-b ]"
RESOURCE = (
    *("configure", "primitive", POD, "ocf:autopod:pod", "params", f"pod={POD}"),
    *("program=/usr/bin/redis-server", f"bin={BIN}", "hosts=node-a:a node-b:b"),
    *("meta", "allow-migrate=true", "resource-stickiness=1000"),
    *("op", "start", "timeout=60s", "op", "stop", "timeout=60s"),
    *("op", "monitor", "interval=10s", "timeout=20s"),
    *("op", "migrate_to", "timeout=300s", "op", "migrate_from", "timeout=60s"),
)


class Cluster(Demo):
    """The steps; where a pod is to go says Pacemaker."""

    def run_all(self, base: object, machines: tuple[Node, Node], netns: str) -> None:
        """Take every step in order."""
        a, b = machines
        self._try_agent(a, base)
        with self.out.step(
            "The pod's program is started by hand; the cluster does not know it yet"
        ):
            self._run(a, "autopod", "addproc", POD, self.service.program)
        try:
            self._connect(a, netns)
            self._form(a, b)
            self._move_by("crm_resource --move", a, b, self._by_move)
            self._move_by("The node goes to standby", b, a, self._by_standby)
            self._move_by("Pacemaker is stopped on the node", a, b, self._by_leaving)
        finally:
            seen = self.clients.end()
        with self.out.step("The clients are done"):
            self.out.check(not seen.failures, "no connection was closed", seen.failures[:1])
            self.out.check(seen.answers, f"{seen.answers} answers, and all were right")
        self._die(b)
        self._refuse(b, a)
        with self.out.step("The resource is stopped, and deleted"):
            self._run(b, "crm", "resource", "stop", POD)
            self._run(b, "crm_resource", "--wait")
            self.out.check(not b.living(POD) and not a.living(POD), "the pod runs nowhere")
            self._run(b, "crm", "configure", "delete", POD)
            for node in (a, b):
                node.leave()

    def _try_agent(self, a: Node, base: object) -> None:
        with self.out.step("ocf-tester, with the pod added at host a"):
            a.configure(POD, (hosts.Path("examples") / POD / "pod.toml").read_text())
            self._run(a, "autopod", "add", POD, "--base", base)
            given = {"pod": POD, "program": self.service.program, "bin": BIN}
            options = [word for key, value in given.items() for word in ("-o", f"{key}={value}")]
            self._run(a, "ocf-tester", "-n", POD, *options, AGENT)

    def _form(self, a: Node, b: Node) -> None:
        with self.out.step("corosync and Pacemaker start on both nodes, and elect"):
            for node in (a, b):
                node.join()
            wait_until(lambda: BOTH in status(a), "both are online", 120)
            for one in PROPERTIES:
                self._run(a, "crm", "configure", "property", one)
        with self.out.step("The resource is made: Pacemaker finds the pod where it runs"):
            self._run(a, "crm", *RESOURCE)
            self._run(a, "crm_resource", "--wait")
            self._run(a, "crm_resource", "--resource", POD, "--locate")
            self.out.check(a.living(POD) and not b.living(POD), "it runs at a, and was left alone")

    def _move_by(
        self, title: str, source: Node, target: Node, act: Callable[[Node, Node], None]
    ) -> None:
        with self.out.step(title):
            before = operations(target)
            self.clients.take_slowest()
            act(source, target)
            enough = self.clients.seen.answers + 2 * self.service.clients
            wait_until(lambda: self._goes_on(enough), "they are answered again")
            self.out.say(
                f"longest that a client waited: {self.clients.take_slowest() * 1e3:.0f} ms"
            )
            alone = target.living(POD) and not source.living(POD)
            self.out.check(alone, f"it lives at {target.name}, and there alone")
            done = [line for line in operations(target) if line not in before]
            self.out.say("\n".join(done))
            here = any("migrate_from" in line and f"node-{target.name}" in line for line in done)
            self.out.check(here, "by a migration, says Pacemaker")
            self.out.check("Failed" not in status(target), "nothing has failed, says Pacemaker")

    def _by_move(self, source: Node, target: Node) -> None:
        self._run(
            source, "crm_resource", "--resource", POD, "--move", "--node", f"node-{target.name}"
        )
        self._run(source, "crm_resource", "--wait")
        self._run(source, "crm_resource", "--resource", POD, "--locate")
        self._run(source, "crm_resource", "--resource", POD, "--clear")

    def _by_standby(self, source: Node, target: Node) -> None:
        self._run(target, "crm_standby", "--node", f"node-{source.name}", "--update", "on")
        self._run(target, "crm_resource", "--wait")
        self._run(target, "crm_standby", "--node", f"node-{source.name}", "--delete")
        self._run(target, "crm_resource", "--wait")

    def _by_leaving(self, source: Node, target: Node) -> None:
        source.leave()
        wait_until(lambda: target.living(POD), "it runs there", 120)
        self._run(target, "crm_resource", "--wait")

    def _die(self, node: Node) -> None:
        with self.out.step("Its program is killed: Pacemaker starts it again, on its files"):
            before = processes(node)
            for pid in before:
                node.run("kill", "-9", pid)
            wait_until(lambda: (now := processes(node)) and now != before, "another one runs", 120)
            self._run(node, "crm_resource", "--wait")
            self.out.say(f"process {' '.join(before)} before, {' '.join(processes(node))} now")
            failed = "monitor" in status(node).partition("Failed Resource Actions")[2]
            self.out.check(failed, "Pacemaker has seen that its program had ended")

    def _refuse(self, source: Node, target: Node) -> None:
        with self.out.step("A host that takes no pods: it begins anew where its files are"):
            target.join()
            wait_until(lambda: BOTH in status(source), "both are online", 120)
            self._run(source, "crm_resource", "--wait")
            target.stop_service()
            before = processes(source)
            to = ("--move", "--node", f"node-{target.name}")
            self._run(source, "crm_resource", "--resource", POD, *to)
            self._run(source, "crm_resource", "--wait")
            self.out.say(status(source).partition("Failed Resource Actions:\n")[2])
            now = processes(source)
            self.out.say(f"process {' '.join(before)} before, {' '.join(now)} now")
            begun = now and now != before and not target.living(POD)
            self.out.check(begun, f"it lives at {source.name}, and there alone")


def status(node: Machine) -> str:
    """Return what Pacemaker says of the cluster; "" while it does not."""
    return node.run("crm_mon", "-1", expect=None)


def operations(node: Machine) -> list[str]:
    """Return what was done with the resource, as Pacemaker remembers it."""
    said = node.run("crm_resource", "--resource", POD, "--list-all-operations")
    return [line.partition("Started: ")[2] for line in said.splitlines() if "Started: " in line]


def processes(node: Machine) -> list[str]:
    """Return the node's numbers of the pod's processes."""
    lines = node.run("launcher", "ps", POD, expect=None).splitlines()[1:]
    return [line.split()[0] for line in lines if len(line.split()) > 1 and line.split()[1] != "1"]


def main() -> int:
    """Run it; return the exit status."""
    return transcript.status("test-pacemaker", _run)


def _run() -> None:
    outside = apart.leave_host()
    try:
        base = in_network(outside, f"examples.{POD}.build")
        demo = Cluster(TITLE, service(writers=5))
        with hosts.pair(Node) as machines, hosts.switch(machines, CLIENT) as netns:
            try:
                demo.run_all(base, machines, netns)
            except (Failed, OSError, TimeoutError):
                print("\n".join(status(node) + node.explain() for node in machines))
                raise
        demo.out.end()
    finally:
        os.close(outside)


if __name__ == "__main__":
    sys.exit(main())
