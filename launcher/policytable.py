"""The policy of one pod, as rows for people and for programs. Pure."""

from collections import defaultdict

from msgspec import Struct

from launcher import policy
from launcher.config import Privileges
from launcher.policy import Emulated, OnlyFamilies, Rules


class CallRow(Struct, frozen=True):
    """A system call: its *kind* (class of the policy, or what else holds it) and its *rule*."""

    call: str
    kind: str
    rule: str


def heading(privileges: Privileges) -> list[str]:
    """Return what holds whatever call it is, as lines."""
    about = policy.PROFILES[privileges.profile].about
    granted = " ".join(privileges.capabilities) or "none"
    gain = "gain nothing" if privileges.no_new_privileges else "have their effect"
    return [
        f"profile {privileges.profile}: {about}",
        f"capabilities: {granted}",
        f"set-user-ID programs {gain}",
        "calls that are not listed are let through; newer ones than the list fail with ENOSYS",
    ]


def rows(privileges: Privileges) -> list[CallRow]:
    """Return the calls that are not simply let through, by class."""
    found = [] if privileges.rules is None else _filtered(privileges.rules)
    found += _dropped(privileges.capabilities)
    confined = policy.BY_NAMESPACE.items()
    denied = {row.call for row in found if row.kind == "disabled"}
    found += [
        CallRow(call, "confined by namespace", f"reaches {reach}")
        for reach, calls in confined
        for call in calls
        if call not in denied
    ]
    return found


def _filtered(rules: Rules) -> list[CallRow]:
    found = [
        CallRow(call, "disabled", f"EPERM: {purpose}")
        for purpose, calls in rules.disabled.items()
        for call in calls
    ]
    found += [CallRow(call, "disabled", "ENOSYS: another way is taken") for call in rules.absent]
    for call, check in rules.arguments.items():
        by = "by the monitor" if isinstance(check, Emulated) else "by the filter"
        error = "EAFNOSUPPORT" if isinstance(check, OnlyFamilies) else "EPERM"
        found.append(CallRow(call, "argument-filtered", f"{by}: {check.meaning}; else {error}"))
    return found


def _dropped(granted: tuple[str, ...]) -> list[CallRow]:
    lacking: dict[str, list[str]] = defaultdict(list)
    for capability, calls in policy.DROPPED.items():
        for call in calls:
            if capability not in granted:
                lacking[call].append(capability)
    return [
        CallRow(call, "privilege-dropped", f"as anybody's: without {' '.join(without)}")
        for call, without in lacking.items()
    ]
