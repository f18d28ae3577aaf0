"""What the status service says, as data and in words. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec

from autopod.overview import columns
from autopod.status.debian import Source
from autopod.status.health import Fault
from autopod.status.kernels import Kernel
from autopod.status.rules import Level, highest

KNOWN: Final = 0
UNKNOWN: Final = 3
ALERT: Final = 4
"""Exit statuses of `autopod status`; 1 and 2 are every command's."""


class Update(msgspec.Struct, frozen=True):
    """A package that security's sake asks for.

    Attributes:
        package: its name.
        installed: None: it is new, an update needs it.
        candidate: the version that there is.
        origin: where it is from, in apt's words.
        level: what it needs after its installation.
        reason: why that.
        kept: apt does not install it: it is held, or what it needs cannot be had.
        advisories: CVE and DSA numbers, where its changelog could be had.
    """

    package: str
    installed: str | None
    candidate: str
    origin: str
    level: Level
    reason: str
    kept: bool = False
    advisories: list[str] = []


class PodSoftware(msgspec.Struct, frozen=True):
    """The software in a pod's root. An update of it needs a restart of the pod's programs.

    Attributes:
        pod: its name.
        unknown: why nothing is known of it; None: it is known.
        updates: what is older than security has it.
    """

    pod: str
    unknown: str | None
    updates: list[Update] = []


class Report(msgspec.Struct, frozen=True):
    """The state of a host and its pods.

    Attributes:
        at: when it was asked for.
        unknown: why the archives' word could not be had, or cannot be relied upon; None: it could.
        sources: the archives of security updates.
        updates: what they have for this host.
        removed: packages that would have to go for that.
        kernel: what runs and what is installed; None: it could not be told.
        pods: the software in the pods.
        faults: what is wrong with the host.
        absent: what of it cannot be looked at.
    """

    at: datetime
    unknown: str | None
    sources: list[Source]
    updates: list[Update]
    removed: list[str]
    kernel: Kernel | None
    pods: list[PodSoftware]
    faults: list[Fault]
    absent: list[str]

    @property
    def level(self) -> Level | Literal["unknown"]:
        """What installing all of it needs; nothing follows from "unknown"."""
        if self.unknown is not None:
            return "unknown"
        return highest(update.level for update in self.updates if not update.kept)

    @property
    def reboot_pending(self) -> list[str]:
        """Why the host is to be rebooted because of what is installed already."""
        return self.kernel.pending if self.kernel else []


def status(report: Report) -> int:
    """Return the exit status that says how it stands."""
    if report.unknown is not None or report.kernel is None:
        return UNKNOWN
    return ALERT if report.faults else KNOWN


def as_json(report: Report) -> str:
    """Return *report* as an object for a program."""
    whole = {
        "level": report.level,
        "reboot_pending": report.reboot_pending,
        **msgspec.structs.asdict(report),
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode() + "\n"


def text(report: Report, *, explain: bool) -> str:
    """Return *report* for a person; with *explain* why each is as it is."""
    parts = [
        *_updates(report, explain=explain),
        *_kernel(report),
        *_pods(report, explain=explain),
        *_faults(report, explain=explain),
    ]
    return "".join(f"{part}\n" for part in parts)


def _updates(report: Report, *, explain: bool) -> Iterator[str]:
    if report.unknown is not None:
        yield f"security updates: UNKNOWN: {report.unknown}"
        return
    if explain:
        for source in report.sources:
            until = f", valid until {source.valid_until:%F %R}" if source.valid_until else ""
            dated = f"{source.dated:%F %R}" if source.dated else "?"
            yield f"source: {source.label} {source.codename}, made {dated}{until} (UTC)"
    if not report.updates:
        yield "security updates: none"
        return
    yield f"security updates: {len(report.updates)}; installing them needs: {report.level}"
    yield _table(report.updates, explain=explain)
    if report.removed:
        yield f"  to be removed for them: {' '.join(report.removed)}"


def _table(updates: Sequence[Update], *, explain: bool) -> str:
    head = ("PACKAGE", "INSTALLED", "CANDIDATE", "NEEDS")
    more = ("WHY", "ORIGIN", "ADVISORIES") if explain else ()
    lines = [(*head, *more)]
    for update in updates:
        needs = f"{update.level}{' (kept back)' if update.kept else ''}"
        cells = (update.package, update.installed or "-", update.candidate, needs)
        why = (update.reason, update.origin or "-", " ".join(update.advisories) or "-")
        lines.append((*cells, *(why if explain else ())))
    return "\n".join(f"  {line}" for line in columns(lines).splitlines())


def _kernel(report: Report) -> Iterator[str]:
    if report.kernel is None:
        yield "kernel: UNKNOWN: the running kernel cannot be told"
        return
    expected = report.kernel.expected
    beside = "no kernel is installed as a package" if expected is None else f"next boot {expected}"
    half = "".join(f"; {one} is half installed" for one in report.kernel.broken_off)
    yield f"kernel: {report.kernel.running} runs; {beside}{half}"
    for reason in report.reboot_pending:
        yield f"reboot needed: {reason}"
    found = report.kernel.needrestart
    if found and found.services:
        yield f"services with old programs: {' '.join(found.services)}"


def _pods(report: Report, *, explain: bool) -> Iterator[str]:
    for pod in report.pods:
        if pod.unknown is not None:
            yield f"pod {pod.pod}: software unknown: {pod.unknown}"
        elif pod.updates:
            yield (
                f"pod {pod.pod}: {len(pod.updates)} packages in its root are to be updated, and "
                "its programs started again; a checkpoint would carry the old ones along"
            )
            yield _table(pod.updates, explain=explain)
        else:
            yield f"pod {pod.pod}: its software has no security updates"


def _faults(report: Report, *, explain: bool) -> Iterator[str]:
    for fault in report.faults:
        yield f"fault: {fault.kind}: {fault.subject}: {fault.text}"
    if not report.faults:
        yield "faults: none"
    if explain:
        yield from (f"not looked at: {what}" for what in report.absent)
