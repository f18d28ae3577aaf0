"""What restarts a pod that was claimed: a process of an agent, which it may outlive.

    python -m autopod.fleet.restart POD FILE           does it
    python -m autopod.fleet.restart POD FILE --check   looks whether it would begin here

The checkpoint is used up when the pod stands, and if that cannot be done, the pod is not let go.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from autopod import journal
from autopod.errors import Refused
from autopod.fleet import members
from autopod.fleet.takeover import Consumption
from ckpt import commands
from launcher import commandline
from launcher.places import Places


def main() -> int:
    """Be the process."""
    places = Places.from_environment()
    try:
        pod, file = sys.argv[1], Path(sys.argv[2])
        if "--check" in sys.argv[3:]:
            _check_room(commands.check_restart(places, pod, file))
            _check_disk(places, file.stat().st_size)
            return 0
        with Consumption(pod, file.name) as consumption:

            def gate() -> Sequence[bytes]:
                consumption.prepare()
                consumption.commit()
                return ()

            commands.restart(places, pod, file, lowers=None, replace=True, gate=gate)
    except Exception as e:  # noqa: BLE001 (it is told to the agent)
        commandline.complain("autopod", e)
        return 1
    return 0


def _check_room(need: int) -> None:
    free = members.free_memory(Path("/proc/meminfo").read_text(encoding="ascii"))
    if free < need:
        raise Refused(f"{free >> 20} MiB are free, {need >> 20} MiB needed")


def _check_disk(places: Places, archive: int) -> None:
    """Refuse a disk on which the pod's files have no room: as many bytes as the archive, about."""
    places.states().mkdir(mode=0o755, parents=True, exist_ok=True)
    free = shutil.disk_usage(places.states()).free
    if free < archive + journal.ROOM:
        raise Refused(f"{free >> 20} MiB are free in {places.states()}: too little for the files")


if __name__ == "__main__":
    sys.exit(main())
