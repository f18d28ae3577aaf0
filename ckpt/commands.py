"""Checkpoint and restart as commands: with lock, keys, progress, and a line that says what was.

`ckpt dump` and `autopod checkpoint` are the same; so are `ckpt restore` and `autopod restart`.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.lock import locked
from launcher.places import Places

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    from ckpt.archive.read import Archive


def checkpoint(  # noqa: PLR0913
    places: Places,
    pod: str,
    file: Path,
    *,
    leave_running: bool,
    tcp: str | None = None,
    recipients: Sequence[Path] = (),
    since: Path | None = None,
) -> None:
    """Write pod *pod* to the archive *file*, signed with the host's key.

    It is encrypted to the host's recipients and to those in the files *recipients*, if any. What is
    in the archive *since* is not written again: who restarts from *file* needs that, too.

    *tcp* says what becomes of TCP connections (launcher.config.Network); None: as configured.

    Raises:
        NotCheckpointable: the pod has what cannot be checkpointed; nothing was touched.
        KeyFileError: the host has no key pair.
        ArchiveError: *since* is refused, or nothing can build upon it; nothing was touched.
    """
    from ckpt import progress

    own_key(places)  # if there is none, nothing need be begun
    if since is not None:
        with _opened(places, since) as archive:
            archive.check_pages(progress.for_terminal())
    with locked(places, pod):
        write(
            places,
            pod,
            file,
            leave_running=leave_running,
            tcp=tcp,
            recipients=recipients,
            since=since,
        )


def write(  # noqa: PLR0913 (the command's own choices)
    places: Places,
    pod: str,
    file: Path,
    *,
    leave_running: bool,
    tcp: str | None = None,
    recipients: Sequence[Path] = (),
    since: Path | None = None,
) -> None:
    """Do the same; the caller holds the pod's lock, and knows that *since* is good."""
    from ckpt import dump, progress, show

    to = _recipients(places, recipients)
    with ExitStack() as stack:
        earlier = None
        if since is not None:
            earlier = stack.enter_context(_to_build_upon(places, pod, since, encrypted=bool(to)))
            if file.exists() and file.samefile(since):
                raise ValueError(f"{file}: it would replace what it builds upon")
        report = dump.dump(
            places,
            pod,
            file,
            leave_running=leave_running,
            tcp=tcp,
            key=own_key(places),
            recipients=to,
            progress=progress.for_terminal(),
            earlier=earlier,
        )
    ratio = report.raw_bytes / report.archive_bytes
    sys.stdout.write(
        f"pod {pod}: frozen {report.frozen_ns / 1e6:.1f} ms, "
        f"total {report.total_ns / 1e6:.0f} ms, "
        f"{show.size(report.archive_bytes)} of {show.size(report.raw_bytes)} (1:{ratio:.1f})\n"
    )
    _write_notes(pod, report.notes)


def _to_build_upon(places: Places, pod: str, since: Path, *, encrypted: bool) -> "Archive":
    from ckpt.archive import earlier

    with ExitStack() as undo:
        archive = undo.enter_context(_opened(places, since))
        earlier.check_usable(archive, pod, encrypted=encrypted)
        undo.pop_all()
        return archive


def _opened(places: Places, file: Path) -> "Archive":
    from ckpt.archive import keys, recipients
    from ckpt.archive.read import open_archive

    identities = recipients.load_identities(places.keys(), None)
    return open_archive(file, keys.load_trusted(places.trust()), identities)


def make_whole(
    places: Places, archive: "Archive", new: Path, *, recipients: Sequence[Path] = ()
) -> None:
    """Write the incremental *archive* as a whole one to *new*, signed and encrypted as any other.

    Raises:
        ValueError: it is whole, or *new* is one of the two files.
        ArchiveError: it is damaged.
    """
    from ckpt import progress, show
    from ckpt.whole import write_whole

    key, to = own_key(places), _recipients(places, recipients)
    files = [one.path for one in (archive, archive.earlier) if one]
    if new.exists() and any(map(new.samefile, files)):
        raise ValueError(f"{new}: it would replace what it is made of")
    summary = write_whole(archive, new, key, to, progress.for_terminal())
    sys.stdout.write(f"{new}: whole, {show.size(summary.bytes)}\n")


def _recipients(places: Places, more: Sequence[Path]) -> "list[X25519PublicKey]":
    from ckpt.archive.recipients import load_recipient, load_recipients

    return [*load_recipients(places.recipients()), *map(load_recipient, more)]


def own_key(places: Places) -> "Ed25519PrivateKey":
    """Return the host's private key.

    Raises:
        KeyFileError: there is none.
    """
    from ckpt.archive import keys

    return keys.load_private(places.keys() / keys.PRIVATE)


def restart(  # noqa: PLR0913
    places: Places,
    pod: str,
    file: Path,
    *,
    lowers: Sequence[Path] | None,
    replace: bool,
    tcp: str | None = None,
    identity: Path | None = None,
    since: Path | None = None,
    gate: Callable[[], Sequence[bytes]] = lambda: (),
    lazy: bool = False,
    rate: int | None = None,
) -> None:
    """Make pod *pod* from the archive *file*, if a trusted key has signed it.

    *tcp* as for checkpoint(). An encrypted archive is opened with the host's identity, or the one
    in the file *identity*. What it builds upon is *since*, or beside it. *gate* is called when the
    pod stands; see restore.restore(). With *lazy* memory follows while it runs already, what no
    program waits for at *rate* MiB a second; None: as fast as it goes.

    Raises:
        ArchiveError: the archive is refused; nothing was taken from it.
    """
    from ckpt import progress, stack
    from ckpt.archive import keys, recipients

    with locked(places, pod), ExitStack() as undo:
        mounting = None
        if not stack.is_mounted(places, pod):
            # The daemon takes longest to start: the engine is imported beside it.
            mounting = undo.enter_context(stack.begin_mount(places, pod))
        from ckpt import restore

        report = restore.restore(
            places,
            pod,
            file,
            trusted=keys.load_trusted(places.trust()),
            lowers=lowers,
            replace=replace,
            progress=progress.for_terminal(),
            tcp=tcp,
            mounting=mounting,
            gate=gate,
            identities=recipients.load_identities(places.keys(), identity),
            since=since,
            lazy=restore.Following(None if rate is None else rate << 20) if lazy else None,
        )
    many = "process" if report.processes == 1 else "processes"
    sys.stdout.write(f"pod {pod}: {report.processes} {many} in {report.total_ns / 1e6:.0f} ms\n")
    _write_notes(pod, report.notes)


def check_restart(places: Places, pod: str, file: Path) -> int:
    """Look whether restart() of *file* would begin here; return the bytes of memory that it takes.

    Nothing is changed.

    Raises:
        ArchiveError, RestoreError, InstallError: it would not.
    """
    from ckpt import restore
    from ckpt.archive import keys, recipients

    trusted = keys.load_trusted(places.trust())
    known = recipients.load_identities(places.keys(), None)
    return restore.check(places, pod, file, trusted=trusted, identities=known)


def verify(
    places: Places, file: Path, *, since: Path | None = None, good: Collection[Path] = ()
) -> "Archive":
    """Check every byte of the archive *file*, which is returned as it was: it is closed.

    An encrypted one is not decrypted for that. The earlier archive that it builds upon, *since* or
    beside it, is checked as well, unless it is one of those that are known to be *good*.

    Raises:
        ArchiveError: it is refused.
    """
    from ckpt import progress
    from ckpt.archive import keys
    from ckpt.archive.read import open_archive

    trusted = keys.load_trusted(places.trust())
    with open_archive(file, trusted, identities=None, since=since) as archive:
        archive.verify(progress.for_terminal(), good)
    return archive


def _write_notes(pod: str, notes: Sequence[str]) -> None:
    for note in notes:
        sys.stdout.write(f"pod {pod}: note: {note}\n")
