"""Where stackfs keeps things. Pure: names in, paths out.

stackfs imports no other package of the project, so the few places that it needs are named here,
as launcher/places.py names them; tests/unit/test_places.py keeps the two in step.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_POD = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


def check_pod_name(name: str) -> str:
    """Return *name* if it can name a pod.

    Raises:
        ValueError: the name is not of that form; the text says what is.
    """
    if not _POD.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a pod: use 1 to 32 of a-z, 0-9 and '-', "
            "beginning and ending with a letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one instance."""

    prefix: Path

    @classmethod
    def from_environment(cls) -> "Places":
        """Return the places below $AUTOPOD_PREFIX, or below `/`."""
        return cls(Path(os.environ.get("AUTOPOD_PREFIX") or "/").absolute())

    def barrier(self, pod: str) -> Path:
        """The mount of *pod*, which is also its barrier directory."""
        return self.prefix / "autopod" / pod

    def root(self, pod: str) -> Path:
        """The root directory that the programs of *pod* see."""
        return self.barrier(pod) / "root"

    def state(self, pod: str) -> Path:
        """What survives a reboot: `upper`, `work`, and sealed layers as `layers/N`. Mode 0700."""
        return self.states() / pod

    def states(self) -> Path:
        """The directory of all pods' state."""
        return self.prefix / "var/lib/autopod"

    def run(self, pod: str) -> Path:
        """What a reboot may forget: the control socket and the daemon's record."""
        return self.prefix / "run/autopod" / pod

    def runs(self) -> Path:
        """The directory of all pods' runtime files."""
        return self.prefix / "run/autopod"
