"""A pod comes from another host: the other end of autopod/migrate.py.

Until the session is decided nothing of the pod's is here but layers in the cache; everything else
ends with the process that receives it.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from autopod import hosts, journal, leaving, overlay, wire
from autopod.errors import Refused
from autopod.fleet.takeover import Handover, are_kept
from autopod.journal import Arrival
from autopod.wire import Link
from autopod.writeout import WriteOut
from ckpt import layers, restore, stack
from ckpt.archive import host as machine
from ckpt.archive import keys
from ckpt.archive.newfile import NewFile
from ckpt.archive.seen import Seen
from ckpt.ground import Ground
from ckpt.progress import Silent
from ckpt.stackcommand import Mounting, Unpacking
from launcher import addresses, config, enter, netconfig, pods
from launcher.errors import Locked
from launcher.identity import identity
from launcher.lock import locked
from launcher.places import Places, check_pod_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_LAYER_ID: Final = "trusted.stackfs.id"
_PATIENCE_S: Final = 60.0
_PAUSE_S: Final = 0.2
_MUCH_MEMORY: Final = 32 << 20
"""Bytes of memory that follow when the pod runs, at least: few are written at once as fast."""

_LARGE: Final = 8 << 20
"""Bytes of the archive's last part, at least, that the disk begins with while the pod is built."""

_FOLLOWING: Final = ".following.pod"
"""The archive, beside layers that are kept, until all memory of the pod has come from it."""


class _Ready(Struct, frozen=True):
    """What was begun while the pod still runs at the other host.

    Attributes:
        ground: where it is to run.
        identities: of what may be its lower layers, by path.
        mounting: of its root.
        unpacking: ready for what it writes last.
        trusted: the other host's key.
        handover: takes it over in the fleet.
    """

    ground: Ground
    identities: Mapping[str, str]
    mounting: Mounting
    unpacking: Unpacking
    trusted: "Mapping[str, Ed25519PublicKey]"
    handover: Handover


def receive(places: Places, link: Link, offer: wire.Offer) -> None:
    """Take a pod that host *link.peer* offers, and let it go on here.

    Raises:
        Refused, RestoreError, InstallError, ArchiveError, PodError, StackError, OSError: it cannot
            be taken; nothing of it is here.
        LinkCut: the other host went away before the pod was let go.
    """
    pod = check_pod_name(offer.pod)
    if not journal.is_session(offer.session):
        raise Refused("the offer's session has no proper name")
    with locked(places, pod):
        clear(places, pod)
        identities = _look(places, offer)
        there = _cached(places, pod)
        link.send(wire.Accepted([one for one in offer.layers if one in there]))
        if offer.trial:
            return
        journal.arrive(places, pod, offer.session)
        try:
            with _made_ready(places, link, offer, identities) as ready:
                for layer_id in [one for one in offer.layers if one not in there]:
                    _take_layer(places, pod, layer_id, link)
                ready.ground.connect()
                link.send(wire.Ready())
                _take_pod(places, link, offer, ready)
        except BaseException:
            clear(places, pod)
            raise


def answer(places: Places, peer: str, session: str) -> wire.Living | wire.Gone:
    """Say what has become of a session, finally.

    A pod that was released, and whose receiver was killed before it had let all go, is restarted.

    Raises:
        Refused: *peer* asks for what is no session, or it is being worked on for too long.
        OSError, RestoreError, …: the pod cannot be restarted now.
    """
    if not journal.is_session(session):
        raise Refused(f"host {peer} asks for a session without a proper name")
    decided = journal.decide(places, session, Arrival("refused", ""))
    if decided.outcome == "refused":
        return wire.Gone()
    finish(places, session)
    return wire.Living()


def finish(places: Places, session: str, *, patience_s: float = _PATIENCE_S) -> None:
    """See to it that the pod of a released session lives here, and forget its archive.

    Raises:
        Locked: its receiver, or another command, still works on it.
        OSError, RestoreError, …: it cannot be restarted now.
    """
    file = journal.arrived(places, session)
    deadline = time.monotonic() + patience_s
    while file.exists():
        decided = journal.decide(places, session, Arrival("refused", ""))
        if decided.outcome == "refused":
            file.unlink(missing_ok=True)
            return
        try:
            with locked(places, decided.pod):
                running = pods.find(places, decided.pod)
                if running is None or not enter.pids(running):
                    leaving.restart(places, decided.pod, file)
                file.unlink(missing_ok=True)
                journal.has_arrived(places, decided.pod)
        except Locked:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)


def clear(places: Places, pod: str) -> None:
    """Take away what a receiver that was killed has left. The caller holds the pod's lock.

    A pod that had been released is let go instead: see finish().
    """
    session = journal.arriving(places, pod)
    if session is None:
        return
    decided = journal.decide(places, session, Arrival("refused", ""))
    if decided.outcome == "refused":
        leaving.leave(places, pod)
    elif not journal.arrived(places, session).exists():
        journal.has_arrived(places, pod)


def _look(places: Places, offer: wire.Offer) -> dict[str, str]:
    """Return the identities of what may be the pod's lower layers, if the pod can come.

    Raises:
        Refused: it cannot.
        InstallError: a lower layer is not here.
    """
    if offer.version != wire.VERSION:
        raise Refused(f"it speaks version {offer.version}, this host {wire.VERSION}")
    against = machine.missing(offer.machine)
    if against:
        raise Refused(f"pod {offer.pod!r} cannot run here: {'; '.join(against)}")
    _look_for_pod(places, offer.pod)
    if offer.owned and not are_kept(places):
        hint = f"there is no {places.guard()}, or no fleet: docs/fleet.md"
        raise Refused("its host asks its fleet before it starts a pod, and this one does not", hint)
    settings = config.parse(offer.config, offer.pod, places.config(offer.pod))
    _look_at_address(places, settings, offer)
    free = shutil.disk_usage(_existing(places.states())).free
    if free < offer.size:
        raise Refused(f"{free >> 20} MiB are free here, and {offer.size >> 20} MiB may come")
    named = [base.path for base in offer.base]
    candidates = [path for path in (*settings.root.lower, *named) if os.path.exists(path)]
    with layers.identities(places, list(dict.fromkeys(candidates))) as running:
        identities = {path: one.result() for path, one in running.items()}
    layers.match(offer.base, identities)
    return identities


def _look_for_pod(places: Places, pod: str) -> None:
    running = pods.find(places, pod)
    if running is not None and enter.pids(running):
        raise Refused(f"a pod {pod!r} runs here", f"autopod rm {pod} there")
    if places.departure(pod).exists():
        raise Refused(f"pod {pod!r} has been given away by this host, and that has not ended")
    for part in ("upper", "layers"):
        if any((places.state(pod) / part).glob("*")):
            hint = f"autopod rm {pod} --purge, there"
            raise Refused(f"a pod {pod!r} is here, with files of its own", hint)


def _look_at_address(places: Places, settings: config.PodConfig, offer: wire.Offer) -> None:
    """Refuse a pod whose identity in the network another one has here."""
    book, name = addresses.read(places), settings.name
    kept = book.pods.get(name)
    others = {pod: own for pod, own in book.reached.items() if pod != name}
    pools = netconfig.pools(places)
    own = identity(places, settings, pools, kept.identity if kept else None, others)
    if offer.overlay:
        overlay.check(places)
    if own is not None:
        overlay.look(places, name, own, keeps=settings.network.tcp == "keep")


def _keys(places: Places, link: Link) -> "Mapping[str, Ed25519PublicKey]":
    """Return the key of the other host, which alone may have signed what comes from it."""
    key = hosts.load(places, link.peer).key
    return {keys.fingerprint(key): key}


def _existing(directory: Path) -> Path:
    while not directory.exists():
        directory = directory.parent
    return directory


def _cached(places: Places, pod: str) -> set[str]:
    """Return the ids of the sealed layers that are here, whole."""
    try:
        names = os.listdir(journal.cache(places, pod))
    except FileNotFoundError:
        return set()
    return {name for name in names if journal.is_session(name)}


@contextmanager
def _made_ready(
    places: Places, link: Link, offer: wire.Offer, identities: Mapping[str, str]
) -> Iterator[_Ready]:
    """Begin all that can be begun, the pod's network behind a wall: it has the same one elsewhere.

    Whatever was made of the pod is undone at the end, unless it lives.
    """
    trusted, settings = _keys(places, link), restore.config_of(places, offer.pod, offer.config)
    with (
        stack.begin_mount(places, offer.pod) as mounting,
        Unpacking(places) as unpacking,
        Ground(places, settings, walled=True) as ground,
        Handover(places, offer.pod, link.peer, offer.session) as handover,
    ):
        yield _Ready(ground, identities, mounting, unpacking, trusted, handover)


def _stand(places: Places, link: Link, offer: wire.Offer, ready: _Ready, still: wire.Still) -> None:
    """Make all of the pod, which stands still now, but its processes."""
    make = partial(_take_layers, places, offer.pod, still.layers, link, ready.unpacking)
    files = layers.Files(offer.base, still.layers, make, ready.identities)
    ready.ground.lay(files, mounting=ready.mounting)
    ready.ground.make(still.clocks)


def _take_layer(places: Places, pod: str, layer_id: str, link: Link) -> None:
    """Take the sealed layer that was offered."""
    if link.receive(wire.Layer).id != layer_id:
        raise Refused("a layer comes that was not offered")
    _keep_layer(places, pod, layer_id, link)


def _keep_layer(places: Places, pod: str, layer_id: str, link: Link) -> None:
    """Keep the sealed layer that comes in the cache, where it appears whole."""
    if not journal.is_session(layer_id):
        raise Refused("a layer has no proper id")
    cache = journal.cache(places, pod)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(cache / f".{layer_id}")
    with stack.unpack(places, cache / f".{layer_id}") as tar:
        for piece in link.receive_stream():
            tar.write(piece)
    os.setxattr(cache / f".{layer_id}", _LAYER_ID, layer_id.encode())
    layers.make_durable(cache)  # what is here by its id is whole
    (cache / f".{layer_id}").rename(cache / layer_id)
    link.send(wire.Done())


def _take_layers(
    places: Places, pod: str, ids: list[str], link: Link, unpacking: Unpacking, directory: Path
) -> None:
    """Make the layers *ids* in *directory*, from those that are kept, and the one that comes now.

    The caller makes them durable.
    """
    for number, layer_id in enumerate(ids, 1):
        path = directory / str(number)
        if not journal.is_session(layer_id):
            raise Refused("a layer has no proper id")
        try:
            (journal.cache(places, pod) / layer_id).rename(path)
        except FileNotFoundError:
            if link.receive(wire.Layer).id != layer_id:
                raise Refused("a layer comes that was not announced") from None
            layers.unpack(unpacking, path, layer_id, link.receive_stream())


def _take_archive(
    places: Places, link: Link, pod: str, fd: int, stand: Callable[[wire.Still], None]
) -> Seen:
    """Write the archive to *fd* as it comes; keep the layers that come between its parts.

    Args:
        places: the instance.
        link: to the other host.
        pod: its name.
        fd: of the archive.
        stand: called when the pod stands still.

    Returns:
        What of its pages was hashed meanwhile, while the pod still runs at the other host.
    """
    seen, size = Seen(), 0
    with open(fd, "wb", closefd=False) as file, WriteOut() as writing:
        while not isinstance(
            message := link.receive(wire.Archive, wire.Layer, wire.Still, wire.Head), wire.Head
        ):
            if isinstance(message, wire.Layer):
                _keep_layer(places, pod, message.id, link)
            elif isinstance(message, wire.Still):
                stand(message)
            elif isinstance(message, wire.Archive):
                began = size
                for piece in link.receive_stream():
                    file.write(piece)
                    if message.pages:
                        seen.add(piece, size)
                    size += len(piece)
                file.flush()
                if message.pages or size - began >= _LARGE:  # else the pod waits for nothing
                    writing.more(fd)
        file.seek(0)
        file.write(message.data)
    return seen


def _take_pod(places: Places, link: Link, offer: wire.Offer, ready: _Ready) -> None:
    """Build the pod from the archive that comes; let it go when the other host has let go of it.

    The pod's layers and its archive are durable before its release is written down.
    """
    path = journal.arrived(places, offer.session)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = NewFile(path)
    try:
        stand = partial(_stand, places, link, offer, ready)
        seen = _take_archive(places, link, offer.pod, file.fd, stand)
        kept = journal.cache(places, offer.pod) / _FOLLOWING

        def gate() -> Sequence[bytes]:
            ready.handover.prepare()
            link.send(wire.Prepared())
            layers.make_durable(places.state(offer.pod))  # while the other host ends the pod
            held = link.receive(wire.Release).held
            file.commit(durable=False)
            ready.handover.commit()
            decided = journal.decide(places, offer.session, Arrival("released", offer.pod))
            if decided.outcome == "refused":
                raise Refused("the other host has been told that the pod is not taken")
            return held

        def lives(notes: list[str]) -> None:
            with suppress(wire.LinkCut):  # the other host will ask
                link.send(wire.Living(notes))

        restore.restore(
            places,
            offer.pod,
            Path(f"/proc/self/fd/{file.fd}"),
            trusted=ready.trusted,
            lowers=None,
            replace=False,
            progress=Silent(),
            ground=ready.ground,
            gate=gate,
            lives=lives,
            lazy=restore.Following(least=_MUCH_MEMORY, seen=seen, kept=kept),
        )
        layers.make_durable(places.state(offer.pod))
        path.unlink(missing_ok=True)
        journal.has_arrived(places, offer.pod)
    finally:
        file.discard()
