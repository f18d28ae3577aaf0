"""The end of a migration at the pod's former host, also of one that was broken off."""

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from autopod import journal, wire
from ckpt import progress, restore, stack
from ckpt.archive import keys
from launcher import commandline, enter, network, pods
from launcher.places import Places

_INSIST_S: Final = 20.0
_PAUSE_S: Final = 0.2


class Lost(Exception):  # noqa: N818 (what is the case)
    """The other host does not say whether it runs the pod; it is stopped here, and kept."""

    def __init__(self, pod: str, host: str, reason: str) -> None:
        super().__init__(f"pod {pod!r} was given to host {host}, which does not confirm: {reason}")
        self.hint = f"it does not run here; when {host} answers again: autopod migrate {pod} {host}"


class Down(Exception):  # noqa: N818 (what is the case)
    """A pod was given away and not taken, and cannot be restarted here now; its archive is kept."""

    def __init__(self, pod: str, file: Path, reason: tuple[str, str]) -> None:
        super().__init__(f"pod {pod!r} was not taken, and cannot go on here yet: {reason[0]}")
        self.hint = f"{reason[1] or 'mend that'}; autopod statusd then restarts it, from {file}"


def settle(places: Places, pod: str) -> wire.Living | None:
    """Bring a departure to its end, if there is one. The caller holds the pod's lock.

    Returns:
        The other host's word that it runs the pod, which is still to be left; None: it is here,
        running if it was given away and not taken.

    Raises:
        Lost: the other host does not answer.
        Down: it cannot be restarted here.
    """
    departure, returns = journal.departure(places, pod), journal.returns(places, pod)
    if departure is None and not returns:
        return None
    running = pods.find(places, pod)
    # Where it runs, it was not killed, and so not released: the other host drops it, or has.
    if running is None or not enter.pids(running):
        if departure is not None:
            answer = _insist(places, pod, departure)
            if isinstance(answer, wire.Living):
                return answer
            journal.return_(places, pod)
        journal.use_reserve(places, pod)
        file = journal.packed(places, pod)
        try:
            restart(places, pod, file)
        except Exception as e:
            raise Down(pod, file, commandline.findings("autopod", e)[0]) from e
    journal.departed(places, pod)
    return None


def leave(places: Places, pod: str) -> None:
    """Take away what is here of a pod that runs elsewhere; its layers stay, for when it returns.

    On the overlay it is still reached through this host (launcher.network.withdraw_network). What
    the journal has of it goes last: broken off, this is done again.
    """
    pods.destroy(places, pod)
    if stack.is_mounted(places, pod):
        sealed = stack.status(places, pod).layers
        stack.umount(places, pod)
        kept = journal.cache(places, pod)
        kept.mkdir(mode=0o700, exist_ok=True)
        for layer in sealed:
            if not (kept / layer.id).exists():
                os.rename(layer.path, kept / layer.id)
    departure = journal.departure(places, pod)
    network.withdraw_network(places, pod, departure.host if departure else "")
    places.config(pod).unlink(missing_ok=True)
    rest = [path for path in places.state(pod).iterdir() if path.name not in journal.RECORDS]
    subprocess.run(["rm", "-rf", "--one-file-system", "--", *rest], check=True)
    journal.departed(places, pod)
    journal.has_arrived(places, pod)
    with suppress(OSError):  # an administrator's own file is in it
        places.state(pod).rmdir()
    with suppress(OSError):
        places.barrier(pod).rmdir()


def _insist(places: Places, pod: str, departure: journal.Departure) -> wire.Message:
    """Ask the other host what it has decided until it answers.

    Raises:
        Lost: it does not, for a while.
    """
    deadline = time.monotonic() + _INSIST_S
    while True:
        try:
            with wire.connect(places, departure.host) as link:
                link.send(wire.Ask(departure.session))
                return link.receive(wire.Living, wire.Gone)
        except (wire.LinkCut, wire.PeerFailed) as e:
            if time.monotonic() > deadline:
                raise Lost(pod, departure.host, str(e)) from e
        time.sleep(_PAUSE_S)


def restart(places: Places, pod: str, file: Path) -> None:
    """Let a pod whose migration was broken off go on here, from its archive.

    Raises:
        OSError, RestoreError, …: as ckpt.restore.restore().
    """
    trusted = keys.load_trusted(places.trust())
    restore.restore(
        places, pod, file, trusted=trusted, lowers=None, replace=False, progress=progress.Silent()
    )
