"""`make demo-apache`: a web server moves from host to host while its clients go on.

Two hosts and a client's are network namespaces, joined by a switch. Browsers keep their
connections and ask for a page again and again, others download; the pod moves there and back. The
exit status is 0 only if no request failed, no connection was closed, every download was whole.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import statistics
import sys
from pathlib import Path

from examples import apart, hosts
from examples.apache.load import Load
from examples.exim.mail import wait_until
from examples.hosts import Machine
from examples.roots import BuildError, in_network
from examples.transcript import Failed, Transcript
from launcher import wall

HERE = Path(__file__).parent
ADDRESS = "10.98.0.20"
CLIENT = "10.98.0.2/16"
BIG = 30_000_000
RATE = 2e6
PAUSE_S = 0.1
# So that a closed connection is always a failure.
PATIENT = "KeepAliveTimeout 300\nMaxKeepAliveRequests 0\nTimeout 300\n"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="examples.apache.demo", description=__doc__)
    parser.add_argument("--moves", type=int, default=4, metavar="N", help="how often it moves (4)")
    parser.add_argument(
        "--browsers", type=int, default=50, metavar="N", help="connections kept alive (50)"
    )
    parser.add_argument(
        "--downloads", type=int, default=5, metavar="N", help=f"downloads of {BIG} bytes (5)"
    )
    return parser.parse_args()


def main() -> int:
    """Run the demonstration; return the exit status."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outside = apart.leave_host()
    try:
        base = in_network(outside, "examples.apache.build")
        demo = Demo(options)
        with hosts.pair() as machines, hosts.switch(machines, CLIENT) as client:
            demo.run(base, machines, client)
        demo.out.end()
    except (Failed, BuildError, OSError, TimeoutError) as e:
        print(f"\ndemo: error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; cleaning up", file=sys.stderr)
        return 130
    finally:
        os.close(outside)
    return 0


class Demo:
    """The steps, and what they must remember for each other."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.content = os.urandom(BIG)
        self.page = (HERE / "www/index.html").read_bytes()
        self.load = Load(ADDRESS, self.page, self.content)
        self.out = Transcript(
            "AutoPod: a web server moves between two hosts, and its clients go on.", shorten={}
        )

    def run(self, base: Path, machines: tuple[Machine, Machine], client: str) -> None:
        """Take every step in order."""
        source, target = machines
        self._start(source, base)
        self._connect(client)
        try:
            pauses = []
            for number in range(self.options.moves):
                pauses.append(self._move(source, target, number))
                source, target = target, source
        finally:
            seen = self.load.end()
        with self.out.step("The clients are done"):
            self.out.say(f"{seen.answers} pages, {seen.downloads} downloads")
            self.out.check(not seen.failures, "no request failed, no connection was closed")
            self.out.check(seen.answers and seen.downloads, "all were what they must be")
            if pauses:
                self.out.say(f"longest pause: {statistics.median(pauses) * 1e3:.0f} ms (median)")

    def _start(self, machine: Machine, base: Path) -> None:
        configuration = machine.places.config("apache")
        configuration.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / "pod.toml", configuration)
        with self.out.step(f"The pod is added at host {machine.name} and Apache started in it"):
            self._run(machine, "autopod", "add", "apache", "--base", base)
            with (machine.root("apache") / "etc/apache2/apache2.conf").open("a") as file:
                file.write(PATIENT)
            (machine.root("apache") / "var/www/html/big").write_bytes(self.content)
            self._run(machine, "autopod", "addproc", "apache", "/usr/sbin/apache2")

    def _connect(self, client: str) -> None:
        browsers, downloads = self.options.browsers, self.options.downloads
        title = f"{browsers} browsers and {downloads} downloads begin, from a third host"
        with self.out.step(title), open(client) as there, wall.inside(there.fileno()):
            wait_until(self._connected, "Apache serves")
            wait_until(lambda: self.load.seen.answers > browsers, "all are answered")
            self.out.say(f"slowest answer so far: {self.load.take_slowest() * 1e3:.0f} ms")

    def _connected(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            self.load.start(self.options.browsers, PAUSE_S, self.options.downloads, RATE)
            return True
        return False

    def _move(self, source: Machine, target: Machine, number: int) -> float:
        """Move the pod; return the longest that a client waited meanwhile, in seconds."""
        title = f"Move {number + 1}: from host {source.name} to host {target.name}"
        with self.out.step(title):
            self.load.take_slowest()
            self._run(source, "autopod", "migrate", "apache", target.name)
            answered = self.load.seen.answers
            enough = answered + 2 * self.options.browsers
            wait_until(lambda: self._go_on(enough), "they are answered again")
            pause = self.load.take_slowest()
            self.out.say(f"longest that a client waited: {pause * 1e3:.0f} ms")
            there, here = target.living("apache"), source.living("apache")
            self.out.check(there and not here, f"it lives at {target.name}, and there alone")
            return pause

    def _go_on(self, enough: int) -> bool:
        if self.load.seen.failures:
            raise Failed(f"a client has failed: {self.load.seen.failures[0]}")
        return self.load.seen.answers >= enough

    def _run(self, machine: Machine, *argv: str | Path) -> None:
        self.out.say(f"{machine.name}$ {shlex.join(map(os.fspath, argv))}")
        self.out.say(machine.run(*argv))


if __name__ == "__main__":
    sys.exit(main())
