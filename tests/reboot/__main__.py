"""`make test-reboot`: the status service reboots a machine into a new kernel; its pods live on.

A machine of the lab (tests/reboot/machine.py) runs statusd, an Exim pod with a mail in its queue,
and an Apache pod with a client on another machine. Its archive of security updates, signed and made
on the spot, gets a new kernel. The service finds it, tells why, writes the pods to disk, installs
it and orders the reboot; the lab then boots the kernel that the machine's disk says.

Each step is printed with its time; the exit status is 1 if one fails.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autopod.status import versions
from autopod.status.kernels import parse_running
from examples.apache import build as apache
from examples.exim import build as exim
from examples.exim.mail import wait_until
from examples.roots import debian
from examples.transcript import Failed, Transcript, status
from tests.kernel.autopod.repository import SUITE, Keys, Repository
from tests.kernels.__main__ import lab_program
from tests.kernels.lab import Lab, LabError
from tests.reboot import machine
from tests.reboot.machine import Machine

DEFAULT = "6.1-6.18"
META = "linux-image-cloud-amd64"
HERE = "10.77.0.1"
"""This machine's address in a lab's network."""
POLICY = """\
[apt]
changelogs_s = 300

[service]
every_s = 60

[act]
enabled = true
hold = "the administrator looks first"
reboot = ["kill", "-TERM", "1"]        # so the lab's init system is told to reboot
"""
# However long the pause, Apache does not find a connection too old.
STATUS = """
LoadModule status_module /usr/lib/apache2/modules/mod_status.so
<Location /server-status>
    SetHandler server-status
    Require all granted
</Location>
KeepAliveTimeout 7200
MaxKeepAliveRequests 0
Timeout 7200
"""
POSTINST = """\
#!/bin/sh
[ "$1" = configure ] || exit 0
if [ -e /disk/power-failure ]; then
    rm /disk/power-failure && sync && echo b >/proc/sysrq-trigger && sleep 1000
fi
echo {} >/boot/boots
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of the lab.

    Attributes:
        name: the lab's.
        release: as `uname -r` says.
        build: its package's version.
    """

    name: str
    release: str
    build: str

    @property
    def package(self) -> str:
        """The name of its package."""
        return f"linux-image-{self.release}"

    def files(self) -> dict[str, str]:
        """Return what is in its package: when it is configured, the boot loader is to take it."""
        return {
            f"boot/vmlinuz-{self.release}": f"kernel {self.name} of the lab\n",
            "DEBIAN/postinst": POSTINST.format(self.release),
        }


def main() -> int:
    """Run the demonstration; return the exit status."""
    return status("test-reboot", partial(_run, _parser().parse_args()), LabError)


def _run(options: argparse.Namespace) -> None:
    program = lab_program(options.lab)
    trees = {"exim": exim.build(), "apache": apache.build()}
    with tempfile.TemporaryDirectory(prefix="autopod-reboot-", dir="/var/tmp") as share:
        lab = Lab(program, Path(share))
        demo = Demo(lab, *options.kernels, power_fails=options.power_failure)
        try:
            demo.run(trees)
        except (LabError, Failed, OSError, subprocess.CalledProcessError):
            demo.explain()
            raise
        finally:
            demo.clean()


class Demo:
    """The steps, and what they must remember for each other."""

    def __init__(self, lab: Lab, before: str, after: str, *, power_fails: bool) -> None:
        self.power_fails = power_fails
        self.share, self.lab = lab.share, lab
        self.names = before, after
        self.upwards = versions.key(before) < versions.key(after)
        self.machine = Machine(lab, f"ap-{os.getpid()}", self.share / "disk.img")
        self.log = self.share / "statusd.log"
        self.answers = self.share / "answers"
        self.netns = ""
        self.cleanup = contextlib.ExitStack()
        title = (
            f"AutoPod: a machine reboots itself from Linux {before} to {after}; its pods live on."
        )
        self.out = Transcript(title, shorten={os.fspath(self.share): "…"})

    def clean(self) -> None:
        """Leave nothing running."""
        self.cleanup.close()
        self.machine.stop()
        if self.netns:
            subprocess.run(["ip", "netns", "del", self.netns], check=False)

    def explain(self) -> None:
        """Show what may tell why a step has failed."""
        for log in (self.log, self.share / "tests.reboot.client.log"):
            if log.exists():
                self.out.say(f"# {log.name}\n{log.read_text(errors='replace')}")
        with contextlib.suppress(LabError):
            self.out.say(self.machine.run("history", seconds=60))

    def run(self, trees: dict[str, Path]) -> None:
        """Do the steps."""
        old, new = self._kernels()
        archive = self._archive(trees, old)
        client = self._pods()
        self._nothing_yet()
        self._published(archive, old, new)
        self.log.write_text("")
        if self.power_fails:
            self._power_fails(client, old)
        self._drained(client, new)
        self._booted(client, new, f"done; expected {new.release}; orders to reboot: 1")
        self._alive(client)
        self._told()
        self.out.end()

    def _kernels(self) -> tuple[Kernel, Kernel]:
        with self.out.step("The kernels"):
            found = [self._kernel(name) for name in self.names]
            for one in found:
                self.out.say(f"{one.name}: {one.release}, package version {one.build}")
            self.out.check(found[0].release != found[1].release, "they are two")
        return found[0], found[1]

    def _kernel(self, name: str) -> Kernel:
        guest = f"{self.machine.name}-k"
        self.lab.boot(guest, name)
        try:
            said = self.lab.run_in(guest, ["uname", "-r", "-v"], 60).strip()
        finally:
            self.lab.call("stop", guest)
        release, build = parse_running(said)
        if build is None:
            raise LabError(f"kernel {name} is not Debian's: {release}")
        return Kernel(name, release, build)

    def _archive(self, trees: dict[str, Path], old: Kernel) -> Repository:
        with self.out.step("A machine with a disk of its own, and an archive that has nothing new"):
            keys = Keys(Path(self.cleanup.enter_context(tempfile.TemporaryDirectory())))
            self.cleanup.callback(keys.close)
            archive = Repository(self.share / "archive", keys)
            packages = self._installed(archive, old)
            staged = self.share / "staged"
            machine.stage(staged, self._with_status(trees))
            (staged / "etc/apt/archive.gpg").write_bytes(keys.public.read_bytes())
            (staged / "etc/apt/sources.list").write_text(
                f"deb [signed-by=/etc/apt/archive.gpg] http://{HERE} {SUITE} main\n"
            )
            (staged / "etc/autopod/autopod.toml").write_text(POLICY)
            (staged / "etc/autopod/pods").mkdir()
            (staged / "boot/boots").write_text(f"{old.release}\n")
            self.machine.format(staged)
            shutil.rmtree(staged)
            self.netns = self.lab.call("lan", self.machine.name).strip()
            route = ["route", "replace", "10.98.0.0/16", "via", machine.ADDRESS, "dev", "br0"]
            subprocess.run(["ip", "-n", self.netns, *route], check=True)
            self._in_network("http.server", "80", "--bind", HERE, "--directory", archive.home)
            self.machine.boot(old.name)
            self.out.say(self.machine.run("install", *packages))
        return archive

    def _installed(self, archive: Repository, old: Kernel) -> list[Path]:
        """Make the packages that the machine has, and which are in the security suite no more.

        A kernel that is newer than that of the packages has no package, and was made by hand.
        """
        if self.upwards:
            archive.add(META, "1", Depends=old.package, Source="linux")
            archive.add(old.package, old.build, old.files(), Source="linux")
        else:
            archive.add(META, "1", Source="linux")
        packages = [path.rename(self.share / path.name) for path in archive.pool.iterdir()]
        archive.publish()
        return packages

    def _with_status(self, trees: dict[str, Path]) -> dict[str, Path]:
        """Return *trees*; Apache counts in its memory, and says how much."""
        tree = self.share / "apache"
        subprocess.run(["cp", "-a", trees["apache"], tree], check=True)
        modules = "usr/lib/apache2/modules"
        shutil.copy(debian() / modules / "mod_status.so", tree / modules)
        with (tree / "etc/apache2/apache2.conf").open("a") as file:
            file.write(STATUS)
        return {**trees, "apache": tree}

    def _in_network(self, module: str, *words: object, **more: object) -> subprocess.Popen[bytes]:
        """Start a module of Python's in the lab's network, on this machine."""
        argv = ["ip", "netns", "exec", self.netns, sys.executable, "-m", module, *map(str, words)]
        log = self.cleanup.enter_context((self.share / f"{module}.log").open("wb"))
        process = subprocess.Popen(
            argv, **{"stdin": subprocess.PIPE, "stdout": log, "stderr": log, **more}
        )

        def end() -> None:
            process.terminate()
            process.wait()

        self.cleanup.callback(end)
        return process

    def _pods(self) -> subprocess.Popen[bytes]:
        with self.out.step("Pods: Exim with a mail in its queue; Apache, and a client far away"):
            self.out.say(self.machine.run("pods", seconds=1800))
            out = self.cleanup.enter_context(self.answers.open("wb"))
            client = self._in_network("tests.reboot.client", machine.WEB, stdout=out)
            self._answered(client, 3)
            self.out.check(True, f"one connection, {self._counts()[-1]} requests so far")
        return client

    def _nothing_yet(self) -> None:
        with self.out.step("The service starts, and finds nothing"):
            self.machine.run("serve", self.log)
            self.machine.run("seen", "none")
            self.out.check(self._is_in_log("reboot needed") is None, "no update, no reboot")

    def _published(self, archive: Repository, old: Kernel, new: Kernel) -> None:
        with self.out.step("The archive publishes a new kernel; it is not installed yet"):
            archive.add(META, "2", Depends=new.package, Source="linux")
            archive.add(new.package, new.build, new.files(), Source="linux")
            archive.changelog(f"main/l/linux/linux_{new.build}", new=new.build, old=old.build)
            archive.publish()
            self.machine.run("seen", "reboot")
            self.out.say(self.log.read_text())
            self.out.check(self._is_in_log("held"), "the service sees it, and waits: it is held")
            said = self.machine.run("command", "autopod", "status", "--explain")
            self.out.say(f"# autopod status --explain\n{said}")
            self.out.check("installing them needs: reboot" in said, "a reboot is needed")
            self.out.check("the kernel that runs is the one that was booted" in said, "and why")
            self.out.check(f"next boot {new.release}" not in said, "nothing is installed")

    def _power_fails(self, client: subprocess.Popen[bytes], old: Kernel) -> None:
        with self.out.step("It is released; the power fails while dpkg configures the kernel"):
            self.machine.run("unsafe")
            self.machine.run("release")
            self._off(client, old)
        self._booted(client, old, "failed; expected None; orders to reboot: 0")
        with self.out.step("The administrator looks, and lets the service go on"):
            said = self.machine.run("command", "autopod", "status", "--explain")
            self.out.say(f"# autopod status --explain\n{said}")
            self.out.check("its installation was broken off" in said, "it is seen")
            self.out.check(
                self._is_in_log("went down"), "nothing is done until somebody has looked"
            )
            self.log.write_text("")
            self.machine.run("clear")

    def _drained(self, client: subprocess.Popen[bytes], new: Kernel) -> None:
        with self.out.step("Pods to disk, installation, reboot"):
            self.machine.run("release")
            self._off(client, new)

    def _off(self, client: subprocess.Popen[bytes], boots: Kernel) -> None:
        """Wait until the machine is off, and is to boot that kernel."""
        self.machine.wait_off(lambda: self._is_in_log(": failed"))
        self.out.say(self.log.read_text())
        found = self.machine.boots()
        self.out.check(client.poll() is None, "the machine is off; its client waits")
        self.out.check(found == boots.release, f"its boot loader is to take {found}", found)

    def _booted(self, client: subprocess.Popen[bytes], kernel: Kernel, ends: str) -> None:
        with self.out.step(f"The machine boots {kernel.release} from its disk; the pods return"):
            before = self._counts()[-1]
            self.log.write_text("")
            self.machine.boot(kernel.name)
            self.machine.run("serve", self.log)
            said = self.machine.run("returned")
            self.out.say(said)
            self.out.check(ends in said, f"the drain: {ends}")
            self.out.say(self.machine.run("command", "autopod", "list"))
            self._answered(client, 3)
            counts, longest = self._counts(), self._longest()
            self.out.check(counts[-1] > before, f"Apache counts on: {before}, then {counts[-3:]}")
            self.out.check(
                client.poll() is None, f"the same connection, a pause of {longest:.0f} s at most"
            )

    def _alive(self, client: subprocess.Popen[bytes]) -> None:
        with self.out.step("Exim still has its queue"):
            self.out.say(self.machine.run("mails", seconds=1800))
            self.out.check(True, "the waiting mail goes out, a new one is delivered")
            client.stdin.close()
            self.out.check(client.wait(60) == 0, "the client was never refused anything")
            counts = self._counts()
            self.out.check(counts == sorted(set(counts)), f"{len(counts)} answers, none twice")

    def _told(self) -> None:
        with self.out.step("The journal of the service"):
            self.out.say(self.machine.run("history"))
            said = self.machine.run("command", "autopod", "status")
            self.out.say(f"# autopod status\n{said}")
            self.out.check("reboot needed" not in said, "no reboot is needed any more")

    def _is_in_log(self, word: str) -> str | None:
        """Return the service's line that has *word*."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return next((line for line in lines if word in line), None)

    def _lines(self) -> Iterator[list[str]]:
        for line in self.answers.read_text().split("\n")[:-1]:
            yield line.split()

    def _counts(self) -> list[int]:
        return [int(count) for _, _, count in self._lines()]

    def _longest(self) -> float:
        return max(float(seconds) for _, seconds, _ in self._lines())

    def _answered(self, client: subprocess.Popen[bytes], more: int) -> None:
        """Wait until *more* answers have come."""
        wanted = len(self._counts()) + more

        def enough() -> bool:
            if client.poll() is not None:
                raise Failed(
                    f"the client ended: {(self.share / 'tests.reboot.client.log').read_text()}"
                )
            return len(self._counts()) >= wanted

        wait_until(enough, "the client has its answers", 900)


def _two(text: str) -> list[str]:
    names = text.split("-")
    if len(names) != 2 or not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}: name two kernels, as {DEFAULT}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="test-reboot", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--lab", metavar="PROGRAM", default=os.environ.get("AUTOPOD_LAB"))
    parser.add_argument(
        "--kernels",
        metavar="FROM-TO",
        type=_two,
        default=DEFAULT,
        help="two kernels of the lab (default: %(default)s)",
    )
    parser.add_argument(
        "--power-failure",
        action="store_true",
        help="the first time, the power fails in the middle of the installation",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
