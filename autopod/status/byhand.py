"""`autopod drain`: what an administrator does by hand; the same steps as the service's."""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from autopod.errors import Refused
from autopod.status import check, cycle, policy, processes, store
from autopod.status import drain as drains
from autopod.status.policy import Policy
from autopod.status.report import UNKNOWN, Report
from autopod.status.store import ENDED, Drain, PodRecord
from launcher.places import Places


class Said(msgspec.Struct, frozen=True):
    """What was done, or would be.

    Attributes:
        status: the exit status.
        wanted: why a reboot is needed.
        against: why the service would not do it now, or why it was not done.
        packages: that are, or would be, installed.
        expected: the kernel that the boot brings, where that is known.
        pods: the pods, and where they are.
        drain: its name; None: nothing was done.
    """

    status: int
    wanted: list[str]
    against: list[str]
    packages: list[str]
    expected: str | None
    pods: list[PodRecord]
    drain: str | None


def rehearse(places: Places, *, install: bool) -> Said:
    """Look, and say what would be done; nothing is touched.

    Raises:
        ConfigError: the policy cannot be understood.
    """
    settings = policy.load(places)
    found = check.look(places) if install else None
    wanted, against = [], list[str]()
    if found:
        with store.opened(places) as history:
            decision = cycle.decide_now(places, settings, history, found)
        wanted, against = decision.wanted, decision.against
    names = drains.running(places)
    try:
        drains.preflight(places, names)
    except Refused as e:
        against = [*against, str(e)]
    against += no_slot(places, settings)
    unknown = found is not None and found.unknown is not None
    pods = [PodRecord(name) for name in names]
    packages = drains.packages(found)
    return Said(
        UNKNOWN if unknown else int(bool(against)), wanted, against, packages, None, pods, None
    )


def drain(places: Places, *, install: bool) -> Said:
    """Empty the host, and install what is to be installed.

    The administrator is asked by nobody: windows, blackouts and whether the service may act are
    the service's; pods that are held are not touched.

    Raises:
        Refused: a drain is under way, a pod is held or cannot be checkpointed.
    """
    settings = policy.load(places)
    with drains.exclusive(places), store.opened(places) as history:
        last = history.last_drain()
        if last and last.phase not in ENDED:
            raise Refused(f"drain {last.id} is under way: {last.phase}", "see autopod drain --undo")
        found = check.look(places) if install else None
        if found and found.unknown is not None:
            return _untouched(UNKNOWN, f"it is unknown what is to be installed: {found.unknown}")
        _refuse_held(settings.act.hold_pods, drains.running(places))
        _refuse_removals(found)
        begun = drains.begin(places, settings, found, ["by hand"], automatic=False)
        return _said(drains.Runner(places, settings, history).run(begun))


def undo(places: Places) -> Said:
    """Restart the pods of a drain here, without a reboot.

    Raises:
        Refused: none is under way.
    """
    settings = policy.load(places)
    with drains.exclusive(places), store.opened(places) as history:
        ended = drains.call_off(places, settings, history)
        lost = [pod for pod in ended.pods if pod.place == "lost"]
        return replace(_said(ended), status=int(bool(lost)))


def clear(places: Places) -> Said:
    """Forget that the last drain failed, so that the service may act again.

    Raises:
        Refused: it has not failed.
    """
    with drains.exclusive(places), store.opened(places) as history:
        last = history.last_drain()
        if last is None or last.failed is None or last.phase not in ENDED:
            raise Refused("the last drain has not failed")
        cleared = replace(last, failed=None, well=True)
        drains.Runner(places, policy.load(places), history).run(cleared)
        return _untouched(0)


def no_slot(places: Places, settings: Policy) -> list[str]:
    """Return why there would be no reboot slot now, if so."""
    why = processes.slot(places, "look", settings.fleet.group) if settings.fleet else None
    return [why] if why else []


def _refuse_held(held: Sequence[str], running: Sequence[str]) -> None:
    for pod in sorted(set(held) & set(running)):
        raise Refused(f"pod {pod!r} is held, and runs", "see act.hold_pods, or stop it first")


def _refuse_removals(found: Report | None) -> None:
    if found and found.removed:
        raise Refused(f"the updates would remove {' '.join(found.removed)}", "use --no-install")


def _untouched(status: int, *against: str) -> Said:
    return Said(status, [], list(against), [], None, [], None)


def _said(ended: Drain) -> Said:
    against = [why for why in (ended.failed, ended.put_off) if why]
    status = int(ended.phase != "ready")
    return Said(status, ended.wanted, against, ended.packages, ended.expected, ended.pods, ended.id)


def as_json(said: Said) -> str:
    """Return it as an object for a program."""
    return msgspec.json.format(msgspec.json.encode(said), indent=2).decode() + "\n"


def text(said: Said) -> str:
    """Return it for a person."""
    lines = [f"wanted: {one}" for one in said.wanted]
    lines += [f"against: {one}" for one in said.against]
    lines += [f"to install: {' '.join(said.packages)}"] if said.packages else []
    lines += [pod.words for pod in said.pods]
    if said.drain and said.status == 0:
        lines.append(f"drain {said.drain}: {_outcome(said)}")
    return "".join(f"{line}\n" for line in lines)


def _outcome(said: Said) -> str:
    if any(pod.place == "back" for pod in said.pods):
        return "called off; the pods run here"
    kernel = f", which brings kernel {said.expected}" if said.expected else ""
    return f"this host can be rebooted{kernel}"
