"""Checkpoint and restart as commands: with lock, keys, progress, and a line that says what was.

`ckpt dump` and `autopod checkpoint` are the same; so are `ckpt restore` and `autopod restart`.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from launcher.lock import locked
from launcher.places import Places


def checkpoint(
    places: Places, pod: str, file: Path, *, leave_running: bool, tcp: str | None = None
) -> None:
    """Write pod *pod* to the archive *file*, signed with the host's key.

    *tcp* says what becomes of TCP connections (launcher.config.Network); None: as configured.

    Raises:
        NotCheckpointable: the pod has what cannot be checkpointed; nothing was touched.
        KeyFileError: the host has no key pair.
    """
    from ckpt import dump, progress, show
    from ckpt.archive import keys

    key = keys.load_private(places.keys() / keys.PRIVATE)
    with locked(places, pod):
        report = dump.dump(
            places,
            pod,
            file,
            leave_running=leave_running,
            tcp=tcp,
            key=key,
            progress=progress.for_terminal(),
        )
    ratio = report.raw_bytes / report.archive_bytes
    sys.stdout.write(
        f"pod {pod}: frozen {report.frozen_ns / 1e6:.1f} ms, "
        f"total {report.total_ns / 1e6:.0f} ms, "
        f"{show.size(report.archive_bytes)} of {show.size(report.raw_bytes)} (1:{ratio:.1f})\n"
    )
    _write_notes(pod, report.notes)


def restart(
    places: Places,
    pod: str,
    file: Path,
    *,
    lowers: Sequence[Path] | None,
    replace: bool,
    tcp: str | None = None,
) -> None:
    """Make pod *pod* from the archive *file*, if a trusted key has signed it.

    *tcp* as for checkpoint().

    Raises:
        ArchiveError: the archive is refused; nothing was taken from it.
    """
    from ckpt import progress, stack
    from ckpt.archive import keys

    with locked(places, pod), ExitStack() as undo:
        mounting = None
        if not stack.is_mounted(places, pod):
            # The daemon takes longest to start: the engine is imported beside it.
            mounting = undo.enter_context(stack.begin_mount(places, pod))
        from ckpt import layers, restore

        report = restore.restore(
            places,
            pod,
            file,
            trusted=keys.load_trusted(places.trust()),
            lowers=lowers,
            replace=replace,
            progress=progress.for_terminal(),
            tcp=tcp,
            prepared=layers.Prepared(mounting),
        )
    many = "process" if report.processes == 1 else "processes"
    sys.stdout.write(f"pod {pod}: {report.processes} {many} in {report.total_ns / 1e6:.0f} ms\n")
    _write_notes(pod, report.notes)


def _write_notes(pod: str, notes: Sequence[str]) -> None:
    for note in notes:
        sys.stdout.write(f"pod {pod}: note: {note}\n")
