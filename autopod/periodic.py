"""`autopod checkpoint POD --keep N`, once or at intervals, and what is told of those kept."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from autopod import checkpoints, overview, retention
from autopod.errors import Refused
from autopod.retention import Taken
from ckpt import commands, show, stack
from ckpt.archive.errors import ArchiveError
from ckpt.progress import for_terminal
from launcher.lock import locked
from launcher.places import Places

_MANY_LAYERS: Final = 64
"""Each checkpoint may seal one, and an archive has at most 512: then they are merged."""


class Row(msgspec.Struct, frozen=True):
    """A kept checkpoint.

    Attributes:
        checkpoint: its number.
        taken: RFC 3339, UTC.
        bytes: of the archive.
        pinned: is it to stay?
        file: the archive, or its URL.
        since: the whole one that it builds upon, if it does.
    """

    checkpoint: int
    taken: str
    bytes: int
    pinned: bool
    file: str
    since: int | None = None


def take(  # noqa: PLR0913
    places: Places,
    pod: str,
    keep: int,
    *,
    pin: bool,
    end: bool,
    tcp: str | None,
    recipients: Sequence[Path],
    whole_every: int = 1,
) -> None:
    """Checkpoint *pod*, which goes on unless *end*, and then delete what need not be kept.

    If it cannot be taken, nothing is deleted, and the pod goes on. At the end it is copied to the
    store, where one is configured (autopod/stored.py), if it is whole. One in *whole_every* is, and
    with *end* it is: somebody else may be to go on from it.

    Raises:
        Refused: there is no such pod, or the fleet restarts pods from the store only.
        NotCheckpointable, OSError, …: as ckpt.dump.dump().
        StoreFailed: it was taken, but not copied.
    """
    overview.check_known(places, pod)
    if whole_every > 1:
        _refuse_where_copies_count(places)
    check = _Check(places)
    with locked(places, pod):

        def write(base: Taken | None) -> None:
            commands.write(
                places,
                pod,
                checkpoints.next_path(places, pod, base),
                leave_running=not end,
                tcp=tcp,
                recipients=recipients,
                since=None if base is None else checkpoints.path_of(places, pod, base),
            )

        known = checkpoints.known(places, pod)
        base = None if end else retention.to_build_upon(known, whole_every)
        if base is None or not _build_upon(places, pod, base, check, write):
            write(None)
        if pin:
            checkpoints.pin(places, pod, checkpoints.known(places, pod)[-1].number)
    _collect(places, pod, keep, check)
    with locked(places, pod):
        if len(stack.status(places, pod).layers) >= _MANY_LAYERS:
            stack.flatten(places, pod)
    _copy(places, pod, keep, check)  # nothing comes after: it has threads


def _build_upon(
    places: Places,
    pod: str,
    base: Taken,
    check: "_Check",
    write: Callable[[Taken], None],
) -> bool:
    """Take a checkpoint that builds upon *base*, if that can be; then nobody deletes it meanwhile.

    A damaged one, or one that this host cannot decrypt, is no reason to take none.
    """
    try:
        with checkpoints.reading(places, pod, base) as path:
            check(path)
            write(base)
    except ArchiveError as e:
        sys.stdout.write(f"pod {pod}: note: this checkpoint is whole: {e}\n")
        return False
    return True


def _refuse_where_copies_count(places: Places) -> None:
    from autopod.status import policy

    fleet = policy.load(places).fleet
    if fleet and fleet.from_store:
        raise Refused(
            "fleet.recover = 'store' restarts pods from copies, and only whole ones are copied",
            "leave --whole-every away, or use a directory that the hosts share",
        )


def collect(places: Places, pod: str, keep: int) -> None:
    """Delete what need not be kept, and say so; and which ones are damaged. In the store, too.

    Raises:
        Refused: there are none.
        StoreFailed: what is to be in the store is not there, or not yet.
    """
    check = _Check(places)
    _collect(places, pod, keep, check)
    _copy(places, pod, keep, check)


def _collect(places: Places, pod: str, keep: int, check: "_Check") -> None:
    gone = checkpoints.collect(places, pod, keep, check)
    for problem in check.damaged:
        sys.stdout.write(f"pod {pod}: note: a kept checkpoint is not good: {problem}\n")
    if gone:
        numbers = retention.spans(one.number for one in gone)
        sys.stdout.write(f"pod {pod}: deleted checkpoint{'s' * (len(gone) > 1)} {numbers}\n")


def _copy(places: Places, pod: str, keep: int, check: "_Check") -> None:
    """Bring the store to where this host is, and say what was done for that."""
    from autopod import stored
    from autopod.objects import StoreFailed

    try:
        objects = stored.opened(places)
        if objects is None:
            return
        progress = for_terminal()
        for line in stored.sync(places, pod, keep, objects, check=check, progress=progress):
            sys.stdout.write(f"pod {pod}: {line}\n")
    except StoreFailed as e:
        hint = "checkpoints are kept on this host, and copied when this is run the next time"
        raise StoreFailed(str(e), e.hint or hint) from e


class _Check:
    """Reads archives from end to end, each good one once; remembers what is wrong with others."""

    def __init__(self, places: Places) -> None:
        self._places, self._good = places, set[Path]()
        self.damaged: list[str] = []

    def __call__(self, path: Path) -> None:
        """Raise an Exception unless the archive is good."""
        if path in self._good:
            return
        try:
            archive = commands.verify(self._places, path, good=self._good)
        except Exception as e:
            self.damaged.append(str(e))
            raise
        self._good.update(one.path for one in (archive, archive.earlier) if one)


def repeat(pod: str, interval_s: int, arguments: Sequence[str]) -> NoReturn:
    """Take a checkpoint of *pod* now and then at intervals, each by a process of its own.

    Whatever happens to one, the next is taken in its time. The time is that of CLOCK_MONOTONIC,
    which nobody sets.

    Args:
        pod: its name.
        interval_s: in seconds.
        arguments: of `autopod checkpoint POD`.
    """
    program = Path(sys.executable).with_name("autopod")
    due = time.monotonic()
    while True:
        subprocess.run([program, "checkpoint", pod, *arguments], check=False)
        due = retention.next_due(due, interval_s, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def rows(places: Places, pod: str) -> list[Row]:
    """Return the kept checkpoints of *pod*, the oldest first."""
    found = []
    for one in checkpoints.known(places, pod):
        path = checkpoints.path_of(places, pod, one)
        try:
            size = path.stat().st_size
        except FileNotFoundError:  # deleted meanwhile
            continue
        taken = checkpoints.spelled(one)
        found.append(Row(one.number, taken, size, one.pinned, str(path), one.since))
    return found


def stored_rows(places: Places, pod: str, where: str) -> list[Row]:
    """Return the checkpoints of *pod* in a store, the oldest first.

    Raises:
        Refused: there is no store.
        StoreFailed: it cannot be told.
    """
    from autopod import stored

    objects = stored.needed(places, where)
    return [
        Row(
            one.taken.number,
            checkpoints.spelled(one.taken),
            one.size,
            one.taken.pinned,
            stored.url_of(objects, pod, one.taken),
        )
        for one in stored.known(objects, pod)
    ]


def table(found: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return *found* as lines of cells for a person. Pure."""
    lines: list[tuple[str, ...]] = [("CHECKPOINT", "TAKEN", "SIZE", "SINCE", "PINNED", "FILE")]
    for row in found:
        since, pinned = str(row.since or "-"), "yes" if row.pinned else "-"
        size = show.size(row.bytes)
        lines.append((str(row.checkpoint), row.taken, size, since, pinned, row.file))
    return lines
