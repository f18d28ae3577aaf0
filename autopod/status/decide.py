"""Is a host to be drained and rebooted now, and why, or why not? Pure."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from autopod.status import windows
from autopod.status.policy import Act
from autopod.status.report import Report


class Decision(msgspec.Struct, frozen=True):
    """What was decided.

    Attributes:
        wanted: why a reboot is needed; empty: it is not.
        against: why it is not done now; empty: nothing speaks against it.
    """

    wanted: list[str]
    against: list[str]

    @property
    def act(self) -> bool:
        """Is it to be done?"""
        return bool(self.wanted) and not self.against


class Situation(msgspec.Struct, frozen=True):
    """What stands in the way besides the policy's own words.

    Attributes:
        running: the pods that run.
        blockers: what the blockers say.
        failed: why the last drain for the same reasons has failed; None: it has not.
        held: why the host is held by hand; None: it is not.
    """

    running: Sequence[str]
    blockers: Sequence[str]
    failed: str | None
    held: str | None = None


def decide(report: Report, act: Act, now: datetime, situation: Situation) -> Decision:
    """Decide. Of what is unknown nothing follows but that nothing is done."""
    wanted = list(report.reboot_pending)
    if report.unknown is None:
        wanted += [
            f"{update.package} {update.candidate}: {update.reason}"
            for update in report.updates
            if update.level == "reboot" and not update.kept
        ]
    known = [*_ignorance(report), *_power(report)]
    return Decision(wanted, [*known, *_policy(act, now), *_situation(act, situation)])


def _ignorance(report: Report) -> list[str]:
    against = []
    if report.unknown is not None:
        against.append(f"it is unknown what is to be installed: {report.unknown}")
    if report.kernel is None:
        against.append("it is unknown which kernel runs")
    if report.removed:
        against.append(f"the updates would remove {' '.join(report.removed)}")
    return against


def _power(report: Report) -> list[str]:
    """Pods on their way to disk, or a package half installed, are not to meet the battery's end."""
    return [f"{one.subject}: {one.text}" for one in report.faults if one.kind == "power"]


def _policy(act: Act, now: datetime) -> list[str]:
    against = [] if act.enabled else ["the policy is to report only (act.enabled)"]
    if act.hold is not None:
        against.append(f"the host is held: {act.hold}")
    closed = windows.against(act.window, act.blackout, now)
    return [*against, closed] if closed else against


def _situation(act: Act, situation: Situation) -> list[str]:
    held = sorted(set(act.hold_pods) & set(situation.running))
    against = [f"pod {pod} is held, and runs" for pod in held]
    if situation.held is not None:
        against.append(f"the host is held by hand: {situation.held}")
    against += situation.blockers
    if situation.failed is not None:
        against.append(f"the last time it failed, look at it first: {situation.failed}")
    return against
