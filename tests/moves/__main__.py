"""`make test-moves`: pods move between machines with different kernels; their clients go on.

Two machines of a lab (tests/reboot/machine.py) and this one are in one network. An Exim pod, which
takes a mail for as long as the test lasts, and an Apache pod, which has connections that are kept
alive and a long download, go from kernel to kernel by `autopod migrate`. Everything is checked byte
by byte. Each step is printed with its time; the exit status is 1 if one fails.
"""

import argparse
import contextlib
import json
import operator
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from examples.apache import build as apache
from examples.apache import load
from examples.clients import Clients
from examples.exim import build as exim
from examples.exim.mail import wait_until
from examples.transcript import Failed, Transcript, status
from launcher import wall
from tests.kernels import exim as mails
from tests.kernels.__main__ import lab_program
from tests.kernels.lab import Lab, LabError
from tests.moves.smtp import SUBJECT, SlowMail
from tests.reboot import machine
from tests.reboot.machine import Machine

DEFAULT = "6.1-6.12-6.1"
PODS = ("exim", "apache")
CLIENT = "10.98.255.2/16"
BROWSERS = 4
BIG = 20_000_000
PAUSE_S = 3.0
PATIENCE_S = 3600.0
POLICY = "[service]\nevery_s = 0\n"
# However long the pause, Apache does not find a connection too old.
PATIENT = "\nKeepAliveTimeout 7200\nMaxKeepAliveRequests 0\nTimeout 7200\n"


class Host:
    """A machine under one kernel."""

    def __init__(self, lab: Lab, lan: str, kernel: str, number: int) -> None:
        self.name, self.kernel = f"linux-{kernel.replace('.', '-')}", kernel
        disk = lab.share / f"{self.name}.img"
        self.machine = Machine(lab, f"{lan}-{number}", disk, lan, f"10.77.0.{10 + number}")
        self.log = lab.share / f"{self.name}.log"

    def begin(self, staged: Path) -> str:
        """Boot, with what is *staged* on its disk, and serve; return what the commands print."""
        self.machine.format(staged)
        self.machine.boot(self.kernel)
        self.machine.run("bridge", f"{self.machine.address}/24")
        identity = ("--name", self.name, "--address", self.machine.address)
        said = self.command("autopod", "host", "init", *identity)
        self.machine.run("serve", self.log)
        return said

    def command(self, *argv: str) -> str:
        """Run a command of the project there; return what it prints.

        Raises:
            LabError: it fails.
        """
        return self.machine.run("command", *argv, seconds=PATIENCE_S)

    def running(self) -> set[str]:
        """Return the names of the pods that run there."""
        rows = json.loads(self.command("autopod", "list", "--json"))
        return {row["pod"] for row in rows if row["state"] == "running"}


class Demo:
    """The steps, and what they must remember for each other."""

    def __init__(self, lab: Lab, kernels: list[str]) -> None:
        self.lab, self.kernels = lab, kernels
        self.lan = f"ap-{os.getpid()}"
        names = list(dict.fromkeys(kernels))
        self.hosts = {
            name: Host(lab, self.lan, name, number) for number, name in enumerate(names, 1)
        }
        self.netns = ""
        self.clients = Clients()
        title = f"AutoPod: pods move from Linux {' to '.join(kernels)}; their clients go on."
        self.out = Transcript(title, shorten={os.fspath(lab.share): "…"})

    def clean(self) -> None:
        """Leave nothing running."""
        self.clients.over.set()  # one that waits for an answer still will never have it
        for host in self.hosts.values():
            host.machine.stop()
        if self.netns:
            subprocess.run(["ip", "netns", "del", self.netns], check=False)

    def explain(self) -> None:
        """Show what may tell why a step has failed."""
        for host in self.hosts.values():
            if host.log.exists():
                self.out.say(f"# {host.name}\n{host.log.read_text(errors='replace')}")

    def run(self, trees: dict[str, Path]) -> None:
        """Take every step in order."""
        content = os.urandom(BIG)
        self._machines(trees, content)
        first = self.hosts[self.kernels[0]]
        with self.out.step("Pods: Exim with a mail in its queue; Apache"):
            self.out.say(first.machine.run("pods", seconds=PATIENCE_S))
        mail = self._connect(content)
        source = first
        for kernel in self.kernels[1:]:
            self._move(source, target := self.hosts[kernel])
            source = target
        self._checked(source, mail)
        self.out.end()

    def _machines(self, trees: dict[str, Path], content: bytes) -> None:
        with self.out.step("Machines that know each other, in one network"):
            self._network()
            staged = self.lab.share / "staged"
            machine.stage(staged, self._patient(trees, content))
            (staged / "etc/autopod/autopod.toml").write_text(POLICY)
            (staged / "etc/autopod/pods").mkdir()
            for host in self.hosts.values():
                self.out.say(host.begin(staged))
            shutil.rmtree(staged)
            first, *others = self.hosts.values()
            for host in others:
                *_, join = first.command("autopod", "host", "invite").split(maxsplit=3)
                self.out.say(host.command("autopod", "host", "join", *join.split()))

    def _network(self) -> None:
        self.netns = self.lab.call("lan", self.lan).strip()
        words = ["addr", "replace", CLIENT, "dev", "br0"]
        subprocess.run(["ip", "-n", self.netns, *words], check=True)

    def _patient(self, trees: dict[str, Path], content: bytes) -> dict[str, Path]:
        """Return *trees*; Apache has the patience and the page that this needs."""
        tree = self.lab.share / "apache"
        subprocess.run(["cp", "-a", trees["apache"], tree], check=True)
        with (tree / "etc/apache2/apache2.conf").open("a") as file:
            file.write(PATIENT)
        (tree / "var/www/html/big").write_bytes(content)
        return {**trees, "apache": tree}

    def _connect(self, content: bytes) -> SlowMail:
        title = f"A mail is begun; {BROWSERS} connections are kept alive, a download is under way"
        page = (Path(apache.__file__).parent / "www/index.html").read_bytes()
        with (
            self.out.step(title),
            open(f"/run/netns/{self.netns}") as there,
            wall.inside(there.fileno()),
        ):
            mail = SlowMail(mails.POD, self.clients)
            for _ in range(BROWSERS):
                load.browse(self.clients, machine.WEB, page, PAUSE_S, PATIENCE_S)
            load.download(self.clients, machine.WEB, content, BIG / 1000, PATIENCE_S)
            mail.go_on(PAUSE_S)
            self._all_go_on("all go on")
        return mail

    def _move(self, source: Host, target: Host) -> None:
        with self.out.step(f"From {source.name} to {target.name}"):
            self.clients.take_slowest()
            for pod in PODS:
                self.out.say(f"{source.name}# autopod migrate {pod} {target.name}")
                self.out.say(source.command("autopod", "migrate", pod, target.name))
            self._all_go_on("all go on")
            slowest = self.clients.take_slowest()
            self.out.say(f"longest that a client waited: {slowest:.1f} s")
            self.out.say(target.command("autopod", "list"))
            alone = target.running() == set(PODS) and not source.running()
            self.out.check(alone, f"they live at {target.name}, and there alone")

    def _all_go_on(self, what: str) -> None:
        """Wait until every client has heard something, twice: what was asked before is over."""
        before = self.clients.heard()

        def heard() -> bool:
            if self.clients.seen.failures:
                raise Failed(f"a client has failed: {self.clients.seen.failures[0]}")
            now = self.clients.heard()
            return len(now) == len(self.clients) and all(now[n] >= before[n] + 2 for n in now)

        wait_until(heard, what, PATIENCE_S)

    def _checked(self, host: Host, mail: SlowMail) -> None:
        with self.out.step("The mail ends; the clients are done; Exim still has its queue"):
            seen = self.clients.end()
            self.out.check(not seen.failures, "no connection was closed", seen.failures[:1])
            self.out.check(seen.answers > 0, f"{seen.answers} answers, and all were right")
            mail.end()
            self.out.check(True, f"Exim takes the mail of {len(mail.lines)} lines")
            found = host.machine.run("mailbox", SUBJECT, seconds=PATIENCE_S).splitlines()
            body = found[found.index("") + 1 :]
            self.out.check(body == mail.lines, "it is in the mailbox, line by line", body[-3:])
            self.out.say(host.machine.run("mails", seconds=PATIENCE_S))
            self.out.check(True, "the mail of the queue goes out, a new one is delivered")


def main() -> int:
    """Run the test; return the exit status."""
    return status("test-moves", partial(_run, _parser().parse_args()), LabError)


def _run(options: argparse.Namespace) -> None:
    program = lab_program(options.lab)
    trees = {"exim": exim.build(), "apache": apache.build()}
    with tempfile.TemporaryDirectory(prefix="autopod-moves-", dir="/var/tmp") as share:
        demo = Demo(Lab(program, Path(share)), options.kernels)
        try:
            demo.run(trees)
        except (LabError, Failed, OSError, subprocess.CalledProcessError):
            with contextlib.suppress(OSError):
                demo.explain()
            raise
        finally:
            demo.clean()


def _kernels(text: str) -> list[str]:
    names = text.split("-")
    if len(names) < 2 or not all(names) or any(map(operator.eq, names, names[1:])):
        raise argparse.ArgumentTypeError(f"{text!r}: name kernels, as {DEFAULT}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="test-moves", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--lab", metavar="PROGRAM", default=os.environ.get("AUTOPOD_LAB"))
    parser.add_argument(
        "--kernels",
        metavar="FROM-TO…",
        type=_kernels,
        default=DEFAULT,
        help="kernels of the lab in their order (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
