"""What `autopod statusd` runs now and again: a process that looks, decides, and perhaps acts.

python -m autopod.status.cycle resume     only goes on with a drain that was broken off
python -m autopod.status.cycle            does that, looks, writes down, decides, acts
"""

import subprocess
import sys

from autopod.errors import Refused
from autopod.status import apt, check, decide, drain, policy, processes, prometheus, report
from autopod.status.decide import Decision, Situation
from autopod.status.policy import Act, Policy
from autopod.status.report import Report
from autopod.status.store import ENDED, Store, opened
from launcher import commandline
from launcher.places import Places


def main() -> int:
    """Be the process."""
    places = Places.from_environment()
    try:
        settings = policy.load(places)
        with drain.exclusive(places), opened(places) as store:
            resumed = drain.resume(places, settings, store)
            if resumed is not None:
                _say(f"drain {resumed.id}: {resumed.phase}{_why(resumed.failed)}")
            if sys.argv[1:] != ["resume"] and _is_idle(store):
                _look(places, settings, store)
    except Exception as e:  # noqa: BLE001 (it is told, and the service goes on)
        commandline.complain("autopod", e)
        return 1
    return 0


def _look(places: Places, settings: Policy, store: Store) -> None:
    found = check.look(places)
    store.add_report(found.at, found.level, report.as_json(found))
    for alert in alerts(found):
        store.add_event("alert", alert)
        _say(f"alert: {alert}")
    decision = decide_now(places, settings, store, found)
    for line in told(decision):
        _say(line)
    nothing = "not needed" if found.unknown is None else "it is unknown whether it is needed"
    store.add_news("reboot", "; ".join(told(decision)) or nothing)
    if decision.act:
        _act(places, settings, store, found, decision)


def _act(places: Places, settings: Policy, store: Store, found: Report, decision: Decision) -> None:
    try:
        begun = drain.begin(places, settings, found, decision.wanted, automatic=True)
    except Refused as e:
        store.add_event("alert", str(e))
        raise
    ended = drain.Runner(places, settings, store).run(begun)
    if ended.put_off:
        _say(f"not now: {ended.put_off}")
        return
    _say(f"drain {ended.id}: {ended.phase}{_why(ended.failed)}")


def alerts(found: Report) -> list[str]:
    """Return what somebody is to look at. Pure."""
    said = [f"security updates: {found.unknown}"] if found.unknown is not None else []
    if found.kernel is None:
        said.append("the running kernel cannot be told")
    return said + [f"{one.kind}: {one.subject}: {one.text}" for one in found.faults]


def told(decision: Decision) -> list[str]:
    """Return a decision in words; nothing where no reboot is needed. Pure."""
    if not decision.wanted:
        return []
    now = f"not now: {'; '.join(decision.against)}" if decision.against else "to be done now"
    return [f"reboot needed: {'; '.join(decision.wanted)}", now]


def decide_now(places: Places, settings: Policy, store: Store, found: Report) -> Decision:
    """Decide, with what the host and the last drain say now."""
    last, hold = store.last_drain(), store.hold()
    situation = Situation(
        running=drain.running(places),
        blockers=blockers(settings.act),
        failed=last.failed if last else None,
        held=hold.reason if hold else None,
    )
    return decide.decide(found, settings.act, apt.now(), situation)


def blockers(act: Act) -> list[str]:
    """Return what the policy's blockers have against a reboot now."""
    found = []
    if act.blocked_by_users:
        try:
            who = subprocess.run(["who"], capture_output=True, check=True).stdout.decode()
        except (OSError, subprocess.SubprocessError) as e:
            who = f"it cannot be told: {e}"
        found += [f"logged in: {line}" for line in who.splitlines()[:1]]
    if act.blocked_by:
        why = processes.run(act.blocked_by)
        if why:
            found.append(f"{act.blocked_by[0]}: {why}")
    return found + [why for why in map(prometheus.against, act.blocked_by_query) if why]


def _is_idle(store: Store) -> bool:
    last = store.last_drain()
    return last is None or last.phase in ENDED


def _why(failed: str | None) -> str:
    return f": {failed}" if failed else ""


def _say(text: str) -> None:
    sys.stderr.write(f"autopod: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
