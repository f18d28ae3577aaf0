"""What the page shows: one model, made from what is on disk. Pure, but for gather().

`/api/state`, the stream of events, `/metrics` and the page all have it from here.
"""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

import msgspec

from autopod import checkpoints, hosts, moves, overview
from autopod.moves import Move
from autopod.overview import Row
from autopod.retention import Taken
from autopod.status import decide, outbox, store
from autopod.status.decide import Situation
from autopod.status.health import Fault
from autopod.status.kernels import Kernel
from autopod.status.outbox import Waiting
from autopod.status.policy import Policy
from autopod.status.report import PodSoftware, Report, Update
from autopod.status.store import ENDED, Drain, Event, Hold
from autopod.web.timeline import Span, spans
from launcher import commandline, pods, usage
from launcher.places import Places

_EVENTS: Final = 1000
_SHOWN: Final = 100
_LONGEST: Final = 1 << 16

_T = TypeVar("_T")


class Inputs(msgspec.Struct, frozen=True):
    """What there is to know; see gather()."""

    name: str
    settings: Policy
    hosts: list[hosts.Row]
    pods: list[Row]
    cpu_s: dict[str, float]
    kept: dict[str, list[Taken]]
    moves: list[Move]
    report: Report | None = None
    problems: list[str] = []
    drain: Drain | None = None
    events: list[Event] = []
    hold: Hold | None = None
    waiting: list[Waiting] = []


class Host(msgspec.Struct, frozen=True):
    """This host.

    Attributes:
        name: as other hosts know it.
        level: what installing all updates needs, "unknown", or None: nothing was asked yet.
        unknown: why that is not known.
        reported: when it was asked, in seconds of the epoch.
        kernel: what runs and what is installed, as of then.
        reboot: why a reboot is needed; empty: it is not.
        against: why the service does not do it now, as far as that can be told without asking.
        updates: what there is for this host.
        faults: what is wrong with it.
        absent: what of it cannot be looked at.
        hold: why nothing is done on it, by hand or by the policy.
        held_by_hand: does the hold end by hand?
        enabled: may the service act?
    """

    name: str
    level: Literal["none", "restart", "reboot", "unknown"] | None
    unknown: str | None
    reported: float | None
    kernel: Kernel | None
    reboot: list[str]
    against: list[str]
    updates: list[Update]
    faults: list[Fault]
    absent: list[str]
    hold: str | None
    held_by_hand: bool
    enabled: bool


class Pod(msgspec.Struct, frozen=True):
    """A pod.

    Attributes:
        pod, state, address, processes, memory_bytes, problem: as `autopod list` has them.
        since: when its init was started, in seconds of the epoch; None unless it runs.
        cpu_s: seconds of processors that it has used.
        updates: what in its root is older than security has it.
        unknown: why nothing is known of its software.
        held: may it not be stopped?
        kept: how many checkpoints of it are kept.
        newest: when the newest of them was taken.
    """

    pod: str
    state: str
    address: str | None
    processes: int
    memory_bytes: int
    problem: str | None
    since: float | None
    cpu_s: float | None
    updates: list[Update]
    unknown: str | None
    held: bool
    kept: int
    newest: float | None


class State(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        at: when, in seconds of the epoch.
        host: this one.
        hosts: those that it knows, itself among them.
        pods: here.
        moves: that go on.
        drain: the last one; None: there was none.
        draining: does it still go on?
        timeline: of the last drain.
        events: the newest last.
        waiting: notices that are not delivered.
        problem: what keeps some of it from being known.
    """

    at: float
    host: Host
    hosts: list[hosts.Row]
    pods: list[Pod]
    moves: list[Move]
    drain: Drain | None
    draining: bool
    timeline: list[Span]
    events: list[Event]
    waiting: list[Waiting]
    problem: str | None


def gather(places: Places, settings: Policy) -> Inputs:
    """Return what is on disk and in /proc now. Nothing is asked of the network.

    What cannot be read is said in *problems*, and does not keep the rest from being shown.
    """
    parts = _Parts()
    inputs = Inputs(
        name=parts.ask("", hosts.own_name, places),
        settings=settings,
        hosts=parts.ask([], _hosts, places),
        pods=parts.ask([], overview.gather, places),
        cpu_s=parts.ask({}, _cpu_s, places),
        kept=parts.ask({}, _kept, places),
        moves=parts.ask([], moves.going_on, places),
        problems=parts.problems,
    )
    return parts.ask(inputs, _remember, places, inputs)


class _Parts:
    """Asks, and goes on where there is no answer."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def ask(self, default: _T, who: Callable[..., _T], *about: object) -> _T:
        """Return what *who* says; *default* if that fails."""
        try:
            return who(*about)
        except Exception as e:  # noqa: BLE001 (it is shown)
            self.problems += [message for message, _ in commandline.findings("autopod", e)]
            return default


def _hosts(places: Places) -> list[hosts.Row]:
    return hosts.rows(places) if hosts.has_name(places) else []


def _cpu_s(places: Places) -> dict[str, float]:
    return {row.pod: row.cpu for row in usage.running(places)}


def _kept(places: Places) -> dict[str, list[Taken]]:
    return {name: checkpoints.known(places, name) for name in pods.names(places)}


def _remember(places: Places, inputs: Inputs) -> Inputs:
    if not store.path(places).exists():
        return inputs
    with store.opened(places) as history:
        said = history.last_report()
        report, problem = decode(said) if said is not None else (None, None)
        return msgspec.structs.replace(
            inputs,
            report=report,
            problems=[*inputs.problems, *([problem] if problem else [])],
            drain=history.last_drain(),
            events=history.recent(_EVENTS),
            hold=history.hold(),
            waiting=outbox.waiting(history),
        )


def decode(said: str) -> tuple[Report | None, str | None]:
    """Return a report, or why it cannot be understood: another version may have written it."""
    try:
        return msgspec.json.decode(said, type=Report), None
    except msgspec.DecodeError as e:
        return None, f"the last report cannot be understood: {e}"


def picture(inputs: Inputs, now: float) -> State:
    """Return what is shown of it. Pure.

    Args:
        inputs: what is known.
        now: seconds of the epoch.
    """
    drain = inputs.drain
    software = {pod.pod: pod for pod in inputs.report.pods} if inputs.report else {}
    return State(
        at=now,
        host=_host(inputs, now),
        hosts=inputs.hosts,
        pods=[_pod(inputs, row, software.get(row.pod), now) for row in inputs.pods],
        moves=inputs.moves,
        drain=drain,
        draining=drain is not None and drain.phase not in ENDED,
        timeline=spans(drain.id, inputs.events) if drain else [],
        events=inputs.events[-_SHOWN:],
        waiting=inputs.waiting[:_SHOWN],
        problem="; ".join(inputs.problems) or None,
    )


def _host(inputs: Inputs, now: float) -> Host:
    report, act = inputs.report, inputs.settings.act
    by_hand = inputs.hold.reason if inputs.hold else None
    against, wanted = list[str](), list[str]()
    if report is not None:
        situation = Situation(
            running=[row.pod for row in inputs.pods if row.processes],
            blockers=[],
            failed=inputs.drain.failed if inputs.drain else None,
            held=by_hand,
        )
        decision = decide.decide(report, act, datetime.fromtimestamp(now, UTC), situation)
        wanted, against = decision.wanted, decision.against if decision.wanted else []
    return Host(
        name=inputs.name,
        level=report.level if report else None,
        unknown=report.unknown if report else None,
        reported=report.at.timestamp() if report else None,
        kernel=report.kernel if report else None,
        reboot=wanted,
        against=against,
        updates=report.updates if report else [],
        faults=report.faults if report else [],
        absent=report.absent if report else [],
        hold=by_hand if by_hand is not None else act.hold,
        held_by_hand=by_hand is not None,
        enabled=act.enabled,
    )


def _pod(inputs: Inputs, row: Row, software: PodSoftware | None, now: float) -> Pod:
    kept = inputs.kept.get(row.pod, [])
    return Pod(
        pod=row.pod,
        state=row.state,
        address=row.address,
        processes=row.processes,
        memory_bytes=row.memory_bytes,
        problem=row.problem,
        since=None if row.uptime_s is None else round(now - row.uptime_s),
        cpu_s=inputs.cpu_s.get(row.pod),
        updates=software.updates if software else [],
        unknown=software.unknown if software else None,
        held=row.pod in inputs.settings.act.hold_pods,
        kept=len(kept),
        newest=kept[-1].at if kept else None,
    )


def look(places: Places, settings: Policy) -> State:
    """Return what is shown now."""
    return picture(gather(places, settings), time.time())


def as_json(state: State, jobs: Sequence[msgspec.Struct] = ()) -> bytes:
    """Return *state*, and what the page itself has begun, for a browser. Pure."""
    whole = {**msgspec.structs.asdict(state), "jobs": list(jobs)}
    return msgspec.json.encode(clean(msgspec.to_builtins(whole, builtin_types=[datetime])))


def clean(value: object) -> object:
    """Return *value* with text that can be shown to a person. Pure.

    Names and versions from inside of pods are whatever their programs have written: control
    characters, and those that turn the direction of writing, would make it look like another text.
    """
    if isinstance(value, str):
        return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value[:_LONGEST])
    if isinstance(value, dict):
        return {key: clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [clean(one) for one in value]
    return value
