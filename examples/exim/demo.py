"""`make demo`: a mail service is checkpointed, wiped out, and goes on from the archive.

All of it happens in a private mount and network namespace, below a prefix of its own: the host is
not touched. The exit status is 0 only if every check held.
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples import apart, leftovers
from examples.exim import mail
from examples.roots import in_network
from examples.transcript import BIN, Transcript, status

HERE = Path(__file__).parent
POD = "10.98.0.10"
SMARTHOST = "10.98.0.1"


def main() -> int:
    """Run the demonstration; return the exit status."""
    return status("demo", _run)


def _run() -> None:
    with contextlib.ExitStack() as undo:
        scratch = Path(tempfile.mkdtemp(prefix="autopod-demo-"))
        undo.callback(shutil.rmtree, scratch)
        network = apart_from_host(undo)
        Demo(scratch, undo).run(network)


def apart_from_host(undo: contextlib.ExitStack) -> int:
    """Leave the host's mounts and network; return a descriptor of the latter."""
    network = apart.leave_host()
    undo.callback(os.close, network)
    return network


class Demo:
    """The steps, and what they must remember for each other."""

    def __init__(self, scratch: Path, undo: contextlib.ExitStack) -> None:
        self.prefix = scratch / "host"
        self.archive = scratch / "exim.pod"
        self.prefix.mkdir()
        self.mailboxes = self.prefix / "autopod/exim/root/home"
        os.environ["AUTOPOD_PREFIX"] = os.fspath(self.prefix)
        undo.callback(leftovers.remove, self.prefix)
        self.out = Transcript(
            f"AutoPod: a mail service lives on. Linux {platform.release()}, in private network and "
            "mount namespaces.",
            shorten={f"{BIN}/": "", os.fspath(scratch): "…"},
        )

    def run(self, network: int) -> None:
        """Take every step in order."""
        base = self._root_trees(network)
        self._start(base)
        self._no_shell()
        self._deliver("alice@pod.test", "before the checkpoint")
        self._queue("waiting in the queue")
        before = self._processes()
        self._checkpoint()
        self._wipe_out()
        self._refuse(base)
        self._restart(before)
        self._deliver_queue("waiting in the queue")
        self._deliver("alice@pod.test", "after the restart")
        self._take_down()
        self.out.end()

    def _root_trees(self, network: int) -> Path:
        with self.out.step("The pod's root tree: one program and what it loads, nothing else"):
            base = in_network(network, "examples.exim.build")
            files = [path for path in base.rglob("*") if path.is_file() and not path.is_symlink()]
            size_mib = sum(path.stat().st_size for path in files) / 2**20
            self.out.say(f"{base}: {len(files)} files, {size_mib:.0f} MiB")
            programs = [path for path in files if path.stat().st_mode & 0o111]
            named = [path.name for path in programs if ".so" not in path.name]
            self.out.check(named == ["exim4"], f"the only program in it is {named[0]}")
            return base

    def _start(self, base: Path) -> None:
        configuration = self.prefix / "etc/autopod/pods/exim.toml"
        configuration.parent.mkdir(parents=True)
        shutil.copyfile(HERE / "pod.toml", configuration)
        with self.out.step("The pod is added and Exim started in it"):
            self.out.run("autopod", "add", "exim", "--base", base)
            self.out.run("autopod", "addproc", "exim", "/usr/sbin/exim4")
            mail.wait_until(lambda: mail.answers(POD), "Exim greets")
            self.out.run("launcher", "ps", "exim")
            self.out.check(mail.answers(POD), f"Exim greets at {POD}, port 25")

    def _no_shell(self) -> None:
        with self.out.step("There is no shell to be had in it"):
            output = self.out.run("launcher", "exec", "exim", "/bin/sh", expect=127)
            self.out.check("/bin/sh" in output, "the pod has no /bin/sh")

    def _deliver(self, recipient: str, subject: str) -> None:
        with self.out.step(f"A mail for {recipient}"):
            mail.send(POD, "bob@elsewhere.test", recipient, subject)
            mail.wait_until(lambda: self._in_mailbox(subject), "the mail is in the mailbox")
            self.out.check(True, f"accepted over SMTP and delivered: {subject!r}")

    def _in_mailbox(self, subject: str) -> bool:
        folder = self.mailboxes / "alice/Maildir/new"
        return any(f"Subject: {subject}\n" in path.read_text() for path in folder.glob("*"))

    def _queue(self, subject: str) -> None:
        with self.out.step("A mail for another domain, whose server is down"):
            mail.send(POD, "alice@pod.test", "friend@elsewhere.test", subject)
            listed = self.out.run("launcher", "exec", "exim", "/usr/sbin/exim4", "-bp")
            self.out.check("friend@elsewhere.test" in listed, "it waits in Exim's queue")

    def _processes(self) -> list[tuple[int, str]]:
        """Process ids inside the pod and command lines: not those of Exim's passing children."""
        argv = [os.fspath(BIN / "launcher"), "ps", "exim", "--json"]
        run = subprocess.run(argv, capture_output=True, text=True, check=True)
        rows = json.loads(run.stdout)
        return [(row["pid"], row["command"]) for row in rows if row["parent"] == 1]

    def _checkpoint(self) -> None:
        with self.out.step("Checkpoint"):
            self.out.run("autopod", "checkpoint", "exim", "-o", self.archive)

    def _wipe_out(self) -> None:
        with self.out.step("Every process, mount, namespace and the pod's own files are destroyed"):
            self.out.run("autopod", "rm", "exim", "--purge")
            left = leftovers.everything(self.prefix)
            claim = "no process, mount, control group or network interface is left"
            self.out.check(not left, claim, left)
            places = ("autopod/exim", "run/autopod/exim", "var/lib/autopod/exim")
            gone = not any((self.prefix / place).exists() for place in places)
            self.out.check(gone, "no upper directory, no layer, no state is left")

    def _refuse(self, base: Path) -> None:
        with self.out.step("A tampered archive, and one signed by an unknown key, are refused"):
            tampered = self.archive.with_name("tampered.pod")
            content = bytearray(self.archive.read_bytes())
            content[len(content) // 2] ^= 1
            tampered.write_bytes(content)
            refused = self.out.run("autopod", "restart", "exim", "-i", tampered, expect=1)
            self.out.check("error:" in refused, "one changed bit is found")
            stranger = self.prefix.with_name("stranger")
            argv = ("autopod", "restart", "exim", "-i", self.archive, "--base", base)
            refused = self.out.run(*argv, expect=1, prefix=stranger)
            self.out.check("key" in refused, "a host that does not trust the key refuses it")
            left = leftovers.everything(self.prefix) + leftovers.everything(stranger)
            self.out.check(not left, "neither left anything behind", left)

    def _restart(self, before: list[tuple[int, str]]) -> None:
        with self.out.step("Restart"):
            start = time.monotonic()
            self.out.run("autopod", "restart", "exim", "-i", self.archive)
            mail.wait_until(lambda: mail.answers(POD), "Exim greets again")
            self.out.say(f"Exim greets {time.monotonic() - start:.2f} s after the command began")
            self.out.run("launcher", "ps", "exim")
            after = self._processes()
            self.out.check(after == before, f"the same processes run: {_listed(after)}")

    def _deliver_queue(self, subject: str) -> None:
        title = "The other domain's server comes up; the restarted Exim remembers"
        with self.out.step(title), mail.smarthost(SMARTHOST) as received:
            mail.wait_until(lambda: bool(received), "the queued mail arrives")
            self.out.check(f"Subject: {subject}" in received[0], f"delivered: {subject!r}")
            self.out.run("launcher", "exec", "exim", "/usr/sbin/exim4", "-bp")

    def _take_down(self) -> None:
        with self.out.step("Clean-up"):
            self.out.run("autopod", "rm", "exim", "--purge")
            left = leftovers.everything(self.prefix)
            self.out.check(not left, "nothing is left on this host", left)


def _listed(processes: list[tuple[int, str]]) -> str:
    return ", ".join(f"{pid} {command}" for pid, command in processes)


if __name__ == "__main__":
    sys.exit(main())
