"""A lab of virtual machines, by its command line: guests with kernels of the user's choice.

The lab is no part of the project. Whatever program has these verbs will do:

    LAB boot --kernel KERNEL --name NAME --root host --share DIR --mem MIB
    LAB run NAME --timeout SECONDS -- SCRIPT      # standard output and exit status of SCRIPT
    LAB stop NAME

A guest sees this machine's root directory, read-only below a layer of its own, and the directory
DIR, which it shares with this machine at the same path. tests/reboot/machine.py says what else it
asks of the lab.
"""

import os
import shlex
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_BOOT_S = 600
_MEMORY_MIB = 1536
# A guest has a /tmp of its own: a project that lies below it is looked up under it.
_SHOW = """
if [ ! -d {project} ]; then
    mkdir -p /mnt/root {project}
    mount --bind / /mnt/root
    mount --bind /mnt/root{project} {project}
fi
cd {project} && exec {command}
"""


class LabError(Exception):
    """The lab does not do what it was asked."""


class Lab:
    """The lab at *program*; *share* is the directory that its guests share."""

    def __init__(self, program: Path, share: Path) -> None:
        self._program = program
        self.share = share
        self._guests: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def run(self, kernel: str, argv: Sequence[object], seconds: float) -> str:
        """Run *argv* in the project's directory in the guest with *kernel*; boot it if need be.

        One command at a time for each guest. Returns its standard output; errors go to ours.

        Raises:
            LabError: the guest does not boot, or the command fails or takes too long.
        """
        with self._lock:
            turn = self._guests.get(kernel)
            if turn is None:
                turn = self._guests[kernel] = threading.Lock()
                self.boot(_name(kernel), kernel)
        with turn:
            return self.run_in(_name(kernel), argv, seconds)

    def run_in(self, name: str, argv: Sequence[object], seconds: float) -> str:
        """Run *argv* in the project's directory in the guest *name*; return what it prints.

        Raises:
            LabError: the command fails, or takes too long.
        """
        project = shlex.quote(os.fspath(PROJECT))
        script = _SHOW.format(project=project, command=shlex.join(map(str, argv)))
        return self.call("run", name, "--timeout", f"{seconds:g}", "--", script)

    def stop(self) -> None:
        """Stop all guests."""
        for kernel in self._guests:
            self.call("stop", _name(kernel))

    def boot(self, name: str, kernel: str, *options: object) -> None:
        """Boot a guest.

        Raises:
            LabError: it does not boot.
        """
        self.call(
            "boot", "--kernel", kernel, "--name", name, "--root", "host",
            "--share", self.share, "--mem", _MEMORY_MIB, *options, seconds=_BOOT_S,
        )  # fmt: skip

    def call(self, *argv: object, seconds: float | None = None) -> str:
        """Give the lab a command; return what it prints.

        Raises:
            LabError: it fails, or takes longer than *seconds*.
        """
        words = [os.fspath(self._program), *map(str, argv)]
        try:
            run = subprocess.run(
                words, stdout=subprocess.PIPE, text=True, check=False, timeout=seconds
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise LabError(f"{words[1]} {words[2]}: {e}") from e
        if run.returncode != 0:
            raise LabError(f"{words[1]} {words[2]}: exit status {run.returncode}\n{run.stdout}")
        return run.stdout


def _name(kernel: str) -> str:
    return f"autopod-{kernel}"
