"""`stackfs check` and `stackfs diff`: looking at a pod's directories."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from stackfs import control
from stackfs.layers import whiteout
from stackfs.layers.diff import changes
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
    faults = [f"lower directory {path} is missing" for path in spec.lower if not path.is_dir()]
    faults += _check_sealed(spec)
    places.run(pod).mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock_pod(places.run(pod)) as lock:
        if lock is None:
            return Findings([], faults)
        if not spec.upper.is_dir() and not spec.sealed():
            faults.append(f"upper directory {spec.upper} is missing")
        return Findings(_clear_work(spec), faults)


def _check_sealed(spec: Spec) -> list[str]:
    """Return what is wrong with the sealed layers: they count from 1 and each has an id."""
    numbers = spec.sealed()
    faults = []
    for number in range(1, max(numbers, default=0) + 1):
        path = spec.base / spec.layers_name / str(number)
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


def diff(places: Places, pod: str) -> list[tuple[str, str]]:
    """Return kind and path of everything that a pod changed of its lower layers.

    A mounted pod's daemon answers, because a lower directory may lie below its mount.
    """
    try:
        reply = control.request(places.run(pod) / "stackfs.sock", "diff")
    except (FileNotFoundError, ConnectionRefusedError):
        return _diff_directories(load_spec(places, pod))
    return [(kind, path) for kind, path in reply["changes"]]


def _diff_directories(spec: Spec) -> list[tuple[str, str]]:
    sealed = [spec.base / spec.layers_name / str(number) for number in spec.sealed()]
    upper = [spec.upper] if spec.upper.is_dir() else []
    with contextlib.ExitStack() as opened:

        def opening(paths: list[Path]) -> list[int]:
            fds = [os.open(path, DIRECTORY) for path in paths]
            for fd in fds:
                opened.callback(os.close, fd)
            return fds

        found = changes(opening([*upper, *sealed]), opening(list(spec.lower)))
    return [(change.kind, os.fsdecode(change.path)) for change in found]
