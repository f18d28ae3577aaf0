"""`stackfs check`: looking at a pod's directories."""

import os
from dataclasses import dataclass

from stackfs.layers import whiteout
from stackfs.layers.layer import DIRECTORY
from stackfs.layers.work import Work, leftovers
from stackfs.mounting import load_spec, lock_pod
from stackfs.places import Places
from stackfs.stack import Spec


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check found: a line on each thing removed, and on each thing that is wrong."""

    removed: list[str]
    faults: list[str]


def check(places: Places, pod: str) -> Findings:
    """Check a pod's directories; of a pod that is not mounted, remove what is half made.

    Raises:
        Refused: there is no such pod.
    """
    spec = load_spec(places, pod)
    faults = [f"lower layer {path} is missing" for path in spec.lower if not path.exists()]
    faults += _check_sealed(spec)
    with lock_pod(places.run(pod)) as lock:
        if lock is None:
            return Findings([], faults)
        if spec.is_lost():
            faults.append(f"upper directory {spec.upper} is missing")
        return Findings(_clear_work(spec), faults)


def _check_sealed(spec: Spec) -> list[str]:
    """Return what is wrong with the sealed layers.

    They count from 1, but for those that were merged into a higher one, and each has an id.
    """
    faults = []
    for number in range(1, max(spec.present(), default=0) + 1):
        path = spec.layer(number)
        if number in spec.covered():
            continue
        if not path.is_dir():
            faults.append(f"sealed layer {path} is missing")
        elif whiteout.attribute(os.fsencode(path), whiteout.LAYER_ID) is None:
            faults.append(f"sealed layer {path} has no id")
    return faults


def _clear_work(spec: Spec) -> list[str]:
    try:
        fd = os.open(spec.base / spec.work_name, DIRECTORY)
    except FileNotFoundError:
        return []
    try:
        return Work(fd).clear() if leftovers(fd) else []
    finally:
        os.close(fd)
