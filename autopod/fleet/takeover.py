"""How who builds a pod asks its fleet: it has one thread and no event loop, a helper has.

See autopod/fleet/handover.py.
"""

import os
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from autopod.errors import Refused
from autopod.status import policy
from launcher.places import Places

ARRIVING: Final = "AUTOPOD_ARRIVING"
"""What a receiver tells the guard of the pod that it builds: its session."""


def are_kept(places: Places) -> bool:
    """Does this host ask its fleet before it makes a pod?

    Raises:
        ConfigError: the host's policy cannot be understood.
    """
    return places.guard().exists() and policy.load(places).fleet is not None


class Helper:
    """A process that makes ready for something, and does it when it is told to."""

    def __init__(self, *words: str) -> None:
        """Begin to make ready; without words nothing is to be done."""
        self._process: subprocess.Popen[bytes] | None = None
        if words:
            argv = [sys.executable, "-m", "autopod.fleet.handover", *words]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe)

    def prepare(self) -> None:
        """Wait until it can be done.

        Raises:
            Refused: it cannot.
        """
        self._expect(b"ready\n")

    def commit(self) -> None:
        """Do it.

        Raises:
            Refused: it may have been done, or not.
        """
        if self._process and self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.write(b"go\n")
                self._process.stdin.flush()
        self._expect(b"done\n")

    def _expect(self, line: bytes) -> None:
        process = self._process
        if process is None or process.stdout is None or process.stderr is None:
            return
        if process.stdout.readline() != line:
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
            why = [one.partition(" error: ")[2] for one in said if " error: " in one]
            raise Refused(f"the fleet does not let it: {(why or said or ['no answer'])[-1]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process:
            self._process.kill()
            with self._process:
                pass


class Handover(Helper):
    """A pod that comes from another host is taken over.

    Where the host does not ask its fleet, nothing is done.
    """

    def __init__(self, places: Places, pod: str, peer: str, session: str) -> None:
        """Begin to make ready.

        Raises:
            ConfigError: the host's policy cannot be understood.
        """
        kept = are_kept(places)
        if kept:
            os.environ[ARRIVING] = session
        super().__init__(*(("take", pod, peer, session) if kept else ()))


class Consumption(Helper):
    """A checkpoint of a pod that this host has claimed is used up."""

    def __init__(self, pod: str, checkpoint: str) -> None:
        """Begin to make ready."""
        super().__init__("consume", pod, checkpoint)
