"""One leg of a journey, in a guest: pods are made or come, and leave or arrive.

python -m tests.kernels.guest TRIP LEG LAST ROOT EXIM NAME...

    TRIP   a directory that the guests share: archives LEG/POD.pod, programs, keys
    LEG    the number of this leg, from 0: at 0 pods are made, else they come from leg LEG-1
    LAST   the number of the last leg: there the workloads check themselves, else they leave
    ROOT   the tree for the pods (tests/kernels/root.py)
    EXIM   the tree for the mail service (examples/exim)

A line of JSON for each workload goes to standard output: an `Outcome`.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from autopod.errors import Refused
from autopod.remove import remove
from ckpt.archive import keys
from ckpt.archive.errors import ArchiveError
from ckpt.layers import InstallError
from ckpt.model import NotCheckpointable
from ckpt.seed import RestoreError
from launcher.errors import PodError
from launcher.lock import locked
from launcher.places import Places
from tests.kernel.ckpt import harness
from tests.kernels import exim
from tests.kernels.outcome import Outcome
from tests.kernels.together import Group, groups

REFUSALS = (NotCheckpointable, RestoreError, ArchiveError, InstallError, PodError)


class Leg:
    """What is done here, and where."""

    def __init__(self, trip: Path, leg: int, last: int, root: Path, exim_root: Path) -> None:
        self.trip, self.leg, self.last = trip, leg, last
        self.root, self.exim_root = root, exim_root
        self.places = Places(Path(os.environ["AUTOPOD_PREFIX"]))

    def trust(self) -> None:
        """Make this leg's key known to the others, and accept theirs."""
        keys.ensure(self.places.keys(), self.places.trust())
        known = self.trip / "keys"
        known.mkdir(exist_ok=True)
        mine = known / f"{self.leg}.pem"  # one guest may have several legs, each with its own key
        shutil.copyfile(self.places.keys() / keys.PUBLIC, mine)
        for path in known.iterdir():
            keys.accept(keys.load_public(path), self.places.trust())

    def archive(self, leg: int, pod: str) -> Path:
        """Return where the archive of *pod* is when it has left on leg *leg*."""
        return self.trip / str(leg) / f"{pod}.pod"

    def pass_on(self, name: str, toml: str, workloads: list[str]) -> list[Outcome]:
        """Do this leg with the pod *name* of *workloads*."""
        group = Group(self.places, name, self.root, toml, self.trip / "programs")
        said: dict[str, str] = {}
        notes: list[str] = []
        try:
            if self.leg == 0:
                said.update(group.start(workloads))
            else:
                group.pod.archive = self.archive(self.leg - 1, name)
                group.load(group.pod.archive.with_suffix(".json"))
                notes = group.pod.restore().notes
            if self.leg == self.last:
                said.update(group.check())
            else:
                group.pod.archive = self.archive(self.leg, name)
                group.save(group.pod.archive.with_suffix(".json"))
                group.pod.dump()
        finally:
            self.remove(name)
        silent = "ok" if self.leg < self.last else "it did not come here"
        outcomes = [_said(workload, said.get(workload, silent)) for workload in workloads]
        outcomes[0].notes = notes
        return outcomes

    def pass_exim_on(self) -> list[Outcome]:
        """Do this leg with the mail service."""
        exim.pass_on(self)
        return [Outcome(exim.NAME, "ok")]

    def remove(self, pod: str) -> None:
        """Leave nothing of *pod* here."""
        with contextlib.suppress(Refused), locked(self.places, pod):
            remove(self.places, pod, purge=True)


def _said(workload: str, text: str) -> Outcome:
    return Outcome(workload, "ok") if text == "ok" else Outcome(workload, "failed", text)


def main() -> int:
    """Do the leg; the outcomes tell of failures."""
    trip, leg, last, root, exim_root, *names = sys.argv[1:]
    here = Leg(Path(trip), int(leg), int(last), Path(root), Path(exim_root))
    here.trust()
    (here.trip / leg).mkdir(exist_ok=True)
    if exim.NAME in names:
        names.remove(exim.NAME)
        _report([exim.NAME], here.pass_exim_on)
    numbers = {toml: number for number, toml in enumerate(groups(harness.names()))}
    for toml, workloads in groups(names).items():
        pod = f"w{numbers[toml]}"
        _report(workloads, lambda p=pod, t=toml, w=workloads: here.pass_on(p, t, w))
    return 0


def _report(workloads: list[str], do: Callable[[], list[Outcome]]) -> None:
    """Print how *workloads* came through; what strikes the pod strikes them all."""
    began = time.monotonic()
    try:
        outcomes = do()
    except REFUSALS as e:
        reason = f"{type(e).__name__}: {e}"
        outcomes = [Outcome(workload, "refused", reason) for workload in workloads]
    except Exception:  # noqa: BLE001 (whatever it is, the next pod has its turn)
        reason = traceback.format_exc(limit=-6)
        outcomes = [Outcome(workload, "failed", reason) for workload in workloads]
    for outcome in outcomes:
        outcome.seconds = round(time.monotonic() - began, 1)
        print(msgspec.json.encode(outcome).decode(), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="autopod-") as prefix:
        os.environ["AUTOPOD_PREFIX"] = prefix
        sys.exit(main())
