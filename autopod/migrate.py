"""`autopod migrate`: a running pod goes to another host, with all that it has.

    this host                                     the other one (autopod/receive.py)
    Offer                                         looks whether the pod could run there
    sealed layers, while the pod runs             keeps them; makes Ready what it can
    Archive: memory, while the pod runs; Layer    keeps it
    freeze; Still: what was written to files      mounts its root, makes the pod
    what has changed; Head                        raises its processes, up to the last step
    writes the departure down; kills the pod
    Release                                       decides the session; lets the pod go: Living
    takes away what is left of it here

If anything fails before the pod is killed, it goes on here. After that the other host is asked what
it has decided, as often as it takes: its answer is final, and exactly one of the two runs the pod
(autopod/journal.py).
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from autopod import journal, leaving, overlay, wire
from autopod.errors import Refused
from autopod.fleet import takeover
from autopod.journal import Departure
from autopod.wire import Link, LinkCut, PeerFailed
from autopod.writeout import WriteOut
from ckpt import dump, layers, sealing, stack
from ckpt.archive import host as machine
from ckpt.archive import keys
from ckpt.archive.schema import Base
from ckpt.archive.seen import PAGES_AT
from ckpt.model import Clocks, NotCheckpointable
from ckpt.progress import Progress
from ckpt.stackcommand import Packing
from launcher import config, enter, network, pods
from launcher.lock import locked
from launcher.places import Places

_PART: Final = 8 << 20
"""Bytes of the archive that are sent at once, at least, while it is written."""

_MUCH: Final = 4 << 20
"""Bytes in the pod's upper layer that are sent before the pod stands still."""


class Report(Struct, frozen=True):
    """What a migration took.

    Attributes:
        down_ns: from the freeze to the word of the other host that the pod lives.
        total_ns: of all.
        sent: bytes of layers and archive.
        notes: what is not quite as it was, and why.
    """

    down_ns: int
    total_ns: int
    sent: int
    notes: list[str]


def migrate(places: Places, pod: str, name: str, *, progress: Progress) -> Report:
    """Move the running *pod* to host *name*.

    Raises:
        Refused, PeerFailed, LinkCut, NotCheckpointable, PodError, StackError, OSError: it has not
            been moved, and runs on here.
        Lost: the other host does not say whether it runs the pod.
    """
    began = time.monotonic_ns()
    with locked(places, pod):
        leaving.settle(places, pod)
        with wire.connect(places, name) as link, WriteOut() as writing:
            with progress.step("pre-flight"):
                offer = _offer(places, pod, trial=False)
                link.send(offer)
                there = link.receive(wire.Accepted).layers
            sender = _Sender(link, progress, writing)
            with progress.step("layers"):
                sender.send_layers(places, pod, offer.layers, there)
                link.receive(wire.Ready)
            report, handover = _hand_over(places, pod, offer, sender)
        taken = handover.taken or leaving.settle(places, pod)
        if taken is None:
            raise Refused(f"host {name} has not taken pod {pod!r}: it runs here again")
        leaving.leave(places, pod)
    down = (handover.living_ns or time.monotonic_ns()) - report.began_ns
    return Report(down, time.monotonic_ns() - began, sender.sent, taken.notes)


def check(places: Places, pod: str, name: str) -> None:
    """Do what comes before a migration and changes nothing: ask both hosts whether it can be.

    Raises:
        Refused, PeerFailed, LinkCut, NotCheckpointable, PodError: it cannot.
    """
    with locked(places, pod), wire.connect(places, name) as link:
        offer = _offer(places, pod, trial=True)
        refusals = dump.check(places, pod)
        if refusals:
            raise NotCheckpointable(*refusals)
        link.send(offer)
        link.receive(wire.Accepted)


def _hand_over(
    places: Places, pod: str, offer: wire.Offer, sender: "_Sender"
) -> "tuple[dump.DumpReport, _Handover]":
    handover = _Handover(places, offer, sender)
    file = journal.packed(places, pod)
    journal.reserve(places, pod)
    try:
        report = dump.dump(
            places,
            pod,
            file,
            leave_running=False,
            key=keys.load_private(places.keys() / keys.PRIVATE),
            progress=sender.progress,
            handover=handover,
        )
    except BaseException:
        if journal.departure(places, pod) is None:
            journal.use_reserve(places, pod)
            file.unlink(missing_ok=True)
        raise
    return report, handover


def _offer(places: Places, pod: str, *, trial: bool) -> wire.Offer:
    """Seal what the pod has written so far, and say what it needs.

    Raises:
        PodError: it does not run.
    """
    running = pods.find(places, pod)
    if running is None or not enter.pids(running):
        raise pods.PodError(f"pod {pod!r} is not running", f"see autopod addproc {pod} PROGRAM")
    settings = network.pin(places, config.load(places, pod))
    sealed = stack.status(places, pod).layers if trial else sealing.seal(places, pod).layers
    with stack.identify(places, pod) as identified:
        base = [Base(*lower) for lower in identified.result()]
    return wire.Offer(
        version=wire.VERSION,
        session=journal.new_session(),
        pod=pod,
        machine=machine.describe(),
        config=config.dump(settings).encode(),
        base=base,
        layers=[layer.id for layer in reversed(sealed)],
        size=memory(running),
        trial=trial,
        owned=takeover.are_kept(places),
        overlay=overlay.carries(places, settings),
    )


def memory(running: pods.Pod) -> int:
    """Return the bytes of memory that the pod's processes have in all, those they share twice."""
    total = 0
    for pid in enter.pids(running):
        with suppress(OSError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return total


def _is_more(directory: Path, limit: int) -> bool:
    """Are there more than *limit* bytes in the files below *directory*?"""
    size = 0
    for path, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.lstat(os.path.join(path, name)).st_size
            if size > limit:
                return True
    return False


class _Sender:
    """Sends what is big, and counts it."""

    def __init__(self, link: Link, progress: Progress, writing: WriteOut) -> None:
        self.link, self.progress, self.sent = link, progress, 0
        self._writing = writing
        self._archive = 0  # how many bytes of it were sent

    def send_layers(
        self, places: Places, pod: str, wanted: list[str], there: Sequence[str]
    ) -> None:
        """Send the sealed layers that the other host lacks."""
        paths = {layer.id: layer.path for layer in stack.status(places, pod).layers}
        for layer_id in [one for one in wanted if one not in there]:
            self.send_layer(layer_id, stack.pack(places, paths[layer_id]))
            self.link.receive(wire.Done)

    def send_layer(self, layer_id: str, packing: Packing) -> None:
        """Send the sealed layer that is being packed."""
        self.link.send(wire.Layer(layer_id))
        with packing as tar:
            self.link.send_stream(self._counted(iter(lambda: tar.read(wire.PIECE), b"")))

    def send_archive(self, fd: int, size: int, least: int) -> None:
        """Send of the archive's first *size* bytes what was not sent yet, if it is *least* or more.

        What is before the pages is sent again when it is complete.
        """
        if size - self._archive >= least:
            self._send_part(fd, size, pages=True)
            self._writing.more(fd)

    def end_archive(self, file: Path) -> None:
        """Send what is left of the archive."""
        with file.open("rb") as stream:
            self._send_part(stream.fileno(), file.stat().st_size, pages=False)
            self.link.send(wire.Head(os.pread(stream.fileno(), PAGES_AT, 0)))

    def _send_part(self, fd: int, size: int, *, pages: bool) -> None:
        """Send what of its first *size* bytes was not sent yet: *pages* and nothing else?"""
        places = range(self._archive, size, wire.PIECE)
        pieces = (os.pread(fd, min(wire.PIECE, size - at), at) for at in places)
        self.link.send(wire.Archive(pages))
        self.link.send_stream(self._counted(pieces))
        self._archive = size

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.sent += len(piece)
            self.progress.advance(len(piece))
            yield piece


class _Handover:
    """Gives the pod to the other host: see ckpt.dump.Handover.

    Attributes:
        taken: the other host's word that it runs the pod; None: it did not say so.
        living_ns: when that came, of time.monotonic_ns().
    """

    def __init__(self, places: Places, offer: wire.Offer, sender: _Sender) -> None:
        self._places, self._pod, self._sender = places, offer.pod, sender
        self._departure = Departure(offer.session, sender.link.peer)
        self.below: Sequence[str] = offer.layers
        self.taken: wire.Living | None = None
        self.living_ns = 0

    def pass_on(self, fd: int, size: int, *, much: bool) -> None:
        """Send what there is of the archive."""
        self._sender.send_archive(fd, size, _PART if much else 1)

    def pass_files(self) -> None:
        """Send what was written to files while memory was sent, if it is much."""
        layers.make_durable(self._places.root(self._pod))  # out of the kernel's cache
        if _is_more(Path(stack.status(self._places, self._pod).upper), _MUCH):
            sealed = sealing.seal(self._places, self._pod).layers
            ids = [layer.id for layer in reversed(sealed)]
            self._sender.send_layers(self._places, self._pod, ids, self.below)
            self.below = ids

    def pass_last_files(self, sealed: sealing.Stack, clocks: Clocks, packing: Packing) -> None:
        """Send what was written since; the other host makes the pod, but for its processes."""
        ids = [layer.id for layer in reversed(sealed.layers)]
        self._sender.link.send(wire.Still(ids, clocks))
        for layer in sealed.layers:
            if layer.id not in self.below:  # what was written has been sealed once: one, or none
                packing.begin(layer.path)
                self._sender.send_layer(layer.id, packing)
        self.below = ids

    def offer(self) -> None:
        """Send the rest of the archive, and wait until the pod stands there."""
        with self._sender.progress.step("send"):
            self._sender.end_archive(journal.packed(self._places, self._pod))
        with self._sender.progress.step("restart"):
            layers.make_durable(self._places.state(self._pod))  # while the pod is built there
            try:
                journal.depart(self._places, self._pod, self._departure)
                self._sender.link.receive(wire.Prepared)
            except BaseException:
                journal.stay(self._places, self._pod)
                raise

    def release(self, held: Sequence[bytes]) -> None:
        """Let it go there. If the link is cut now, the journal tells how it goes on."""
        with self._sender.progress.step("release"), suppress(LinkCut, PeerFailed, Refused):
            self._sender.link.send(wire.Release(list(held)))
            self.taken = self._sender.link.receive(wire.Living)
            self.living_ns = time.monotonic_ns()
