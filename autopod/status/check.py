"""`autopod status`: asks apt, the host and the pods' roots, and puts the answers together."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from autopod.status import apt, debian, kernels, podfiles, policy, rules, sensors
from autopod.status.apt import Apt, Unknown
from autopod.status.debian import Plan, Source, Step
from autopod.status.report import PodSoftware, Report, Update
from autopod.status.rules import Level, Rule
from launcher import pods
from launcher.places import Places

_FAILURES: Final = 3

_Offers = dict[str, dict[tuple[str, str], str]]


class _Archives(msgspec.Struct, frozen=True):
    """What the archives have said."""

    sources: list[Source]
    plan: Plan
    offers: _Offers


def look(places: Places) -> Report:
    """Return the state of this host and its pods now. Takes seconds, and the network.

    Raises:
        ConfigError: the policy, or the rules, cannot be understood.
        OSError: the private apt cannot be set up.
    """
    settings, table = policy.load(places), rules.load(places)
    private, at = apt.private(places, settings), apt.now()
    archives, unknown, updates = None, None, list[Update]()
    with private.locked():
        try:
            archives = _ask(private, at)
            updates = _judged(private, table, archives.plan.steps)
        except Unknown as e:
            unknown = str(e)
    faults, absent = sensors.look(places, settings.faults)
    return Report(
        at=at,
        unknown=unknown,
        sources=archives.sources if archives else [],
        updates=updates,
        removed=archives.plan.removed if archives else [],
        kernel=_kernel(settings),
        pods=[_pod(places, name, table, archives) for name in pods.names(places)],
        faults=faults,
        absent=absent,
    )


def _ask(private: Apt, at: datetime) -> _Archives:
    """Ask the archives. That they answer at all comes first: what is on disk is of yesterday."""
    private.update()
    sources = private.sources(at)
    return _Archives(sources, private.plan(), private.offers())


def _judged(private: Apt, table: Sequence[Rule], steps: Sequence[Step]) -> list[Update]:
    """Return what is to be installed with what it needs, what needs most first."""
    judged = [(step, *_judge(table, step)) for step in steps]
    judged.sort(key=lambda one: rules.LEVELS.index(one[1]), reverse=True)
    named = _advisories(private, [step for step, _, _ in judged])
    return [
        Update(
            package=step.package,
            installed=step.installed,
            candidate=step.candidate,
            origin=step.origin,
            level=level,
            reason=reason,
            kept=step.kept,
            advisories=named.get(step.package, []),
        )
        for step, level, reason in judged
    ]


def _judge(table: Sequence[Rule], step: Step) -> tuple[Level, str]:
    level, reason = rules.judge(table, step.package)
    return level, f"{reason}; its installation was broken off" if step.broken_off else reason


def _advisories(private: Apt, steps: Sequence[Step]) -> dict[str, list[str]]:
    """Return what changelogs name, by package. That one is not to be had is no fault."""
    named, failures = {}, 0
    deadline = time.monotonic() + private.policy.apt.changelogs_s
    for step in steps:
        left = deadline - time.monotonic()
        if left <= 0 or failures == _FAILURES:
            break
        try:
            changelog = private.changelog(step.package, left)
        except Unknown:
            failures += 1
        else:
            named[step.package] = debian.advisories(changelog, step.installed)
    return named


def _kernel(settings: policy.Policy) -> kernels.Kernel | None:
    try:
        return kernels.look(settings.host)
    except (OSError, ValueError):
        return None


def _pod(
    places: Places, name: str, table: Sequence[Rule], archives: _Archives | None
) -> PodSoftware:
    if archives is None:
        return PodSoftware(name, "the archives' word could not be had")
    try:
        release = debian.codename(podfiles.read(places, name, "usr/lib/os-release"))
        installed = debian.parse_status(podfiles.read(places, name, "var/lib/dpkg/status"))
    except podfiles.Unreadable as e:
        return PodSoftware(name, str(e))
    offered = _offered(archives.offers, release)
    if offered is None:
        known = " ".join(sorted(archives.offers))
        return PodSoftware(name, f"it is of {release or 'no release'}, this host asks {known}")
    return PodSoftware(
        name, None, [_outdated(table, *one) for one in debian.outdated(installed, offered)]
    )


def _offered(offers: _Offers, release: str | None) -> dict[tuple[str, str], str] | None:
    return offers.get(f"{release}-security", offers.get(release or ""))


def _outdated(table: Sequence[Rule], package: str, installed: str, offered: str) -> Update:
    """A pod has no kernel of its own: no package in it needs more than a restart."""
    level, reason = rules.judge(table, package)
    if level == "reboot":
        level, reason = "restart", "a pod has no kernel, hypervisor or device of its own"
    return Update(package, installed, offered, "", level, reason)
