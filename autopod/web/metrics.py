"""The state for Prometheus."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from autopod import overview
from autopod.status.rules import LEVELS
from autopod.status.store import Phase
from autopod.web.state import Pod, State

_STATES: Final = get_args(overview.State)
_PHASES: Final = get_args(Phase)


def text(state: State) -> bytes:
    """Return *state* in Prometheus' text format. Pure."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(state))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:  # type: ignore[explicit-override]
        """Return all of it."""
        yield from _host(self._state)
        yield from _service(self._state)
        yield from _pods(self._state.pods)


def _gauge(name: str, help_: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"autopod_{name}", help_, value=value)


def _gauges(
    name: str, help_: str, label: str, values: Iterable[tuple[str, float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"autopod_{name}", help_, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def _host(state: State) -> Iterator[Metric]:
    host = state.host
    known = host.level not in {None, "unknown"}
    yield _gauge("updates_known", "Whether the archives' last word could be relied upon.", known)
    if known:  # nothing follows from what is unknown, 0 least of all
        levels = Counter(update.level for update in host.updates)
        yield _gauges(
            "updates",
            "Security updates that are not installed, by what they need.",
            "level",
            ((level, levels[level]) for level in LEVELS),
        )
    yield _gauge("reboot_needed", "Whether a reboot is needed for security.", bool(host.reboot))
    if host.reported is not None:
        yield _gauge("report_age_seconds", "Age of the last report.", state.at - host.reported)
    kinds = Counter(fault.kind for fault in host.faults)
    yield _gauges("faults", "Faults of the host in the last report.", "kind", kinds.items())


def _service(state: State) -> Iterator[Metric]:
    phase = state.drain.phase if state.drain else None
    yield _gauges(
        "drain_phase",
        "1 for the phase of the last drain.",
        "phase",
        ((one, float(one == phase)) for one in _PHASES),
    )
    yield _gauge("held", "Whether the service is held.", state.host.hold is not None)
    yield _gauge("moves", "Pods on their way to another host or from one.", len(state.moves))
    yield _gauge("notices_waiting", "Notices that were not delivered yet.", len(state.waiting))


def _pods(pods: Iterable[Pod]) -> Iterator[Metric]:
    pods = list(pods)
    states = Counter(pod.state for pod in pods)
    running = [pod for pod in pods if pod.state == "running"]
    yield _gauges("pods", "Pods by state.", "state", ((one, states[one]) for one in _STATES))
    yield _gauges(
        "pod_memory_bytes",
        "Proportional set size of a pod's processes.",
        "pod",
        ((pod.pod, pod.memory_bytes) for pod in running),
    )
    yield _gauges(
        "pod_processes", "Processes of a pod.", "pod", ((pod.pod, pod.processes) for pod in running)
    )
    yield _gauges(
        "pod_start_time_seconds",
        "When a pod was started, since the epoch.",
        "pod",
        ((pod.pod, pod.since) for pod in running if pod.since is not None),
    )
    yield _gauges(
        "pod_updates",
        "Packages in a pod's root that have security updates.",
        "pod",
        ((pod.pod, len(pod.updates)) for pod in pods if pod.unknown is None),
    )
    cpu = CounterMetricFamily("autopod_pod_cpu_seconds", "Processor time of a pod.", labels=["pod"])
    for pod in running:
        if pod.cpu_s is not None:
            cpu.add_metric([pod.pod], pod.cpu_s)
    yield cpu
