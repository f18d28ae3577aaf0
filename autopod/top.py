"""`autopod top`: what the page shows, in a terminal."""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autopod.overview import duration
from autopod.status import policy
from autopod.web import state
from autopod.web.state import Host, Pod, State
from launcher.places import Places

_EVERY_S: Final = 2.0
_EVENTS: Final = 8
_LOOKS: Final = {"running": "green", "leaving": "cyan"}
_LEVELS: Final = {"reboot": "bold red", "restart": "yellow", "none": "", "unknown": "bold red"}


def watch(places: Places, *, once: bool) -> None:
    """Show the host until Ctrl-C; *once*, or where nobody looks at a terminal, a single time.

    Raises:
        ConfigError: the policy cannot be understood.
    """
    settings = policy.load(places)
    console = Console()
    if once or not sys.stdout.isatty():
        console.print(render(_look(places, settings), None))
        return
    before = _look(places, settings)
    with Live(render(before, None), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY_S)
            now = _look(places, settings)
            live.update(render(now, before), refresh=True)
            before = now


def _look(places: Places, settings: policy.Policy) -> State:
    """Return the state with text that a terminal can be given."""
    plain = msgspec.to_builtins(state.look(places, settings), builtin_types=[datetime])
    return msgspec.convert(state.clean(plain), State)


def render(now: State, before: State | None) -> RenderableType:
    """Return *now* for a terminal; processors' shares need the state *before*, too. Pure."""
    return Group(*_host(now.host, now.at), _pods(now, before), *_under_way(now), *_events(now))


def _host(host: Host, at: float) -> Iterator[Text]:
    level = host.level or "nothing was asked yet"
    head = Text.assemble((host.name, "bold"), "  updates: ", (level, _LEVELS.get(level, "")))
    if host.kernel:
        head.append(f"  kernel {host.kernel.running}")
    if host.reported is not None:
        head.append(f"  looked {duration(int(at - host.reported))} ago", "dim")
    yield head
    if host.unknown is not None:
        yield Text(f"unknown: {host.unknown}", "red")
    if host.hold is not None:
        yield Text(f"held: {host.hold}", "yellow")
    yield from (Text(f"reboot: {why}", "red") for why in host.reboot)
    yield from (Text(f"not now: {why}", "dim") for why in host.against)
    yield from (Text(f"fault: {one.kind}: {one.subject}: {one.text}", "red") for one in host.faults)


def _pods(now: State, before: State | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("POD", "STATE", "UP", "MEMORY", "CPU", "PROCESSES", "UPDATES"):
        right = name in {"UP", "MEMORY", "CPU", "PROCESSES"}
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "POD")
    old = {pod.pod: pod for pod in before.pods} if before else {}
    passed = now.at - before.at if before else 0.0
    for pod in now.pods:
        table.add_row(*_cells(pod, old.get(pod.pod), now.at, passed))
    return table


def _cells(pod: Pod, old: Pod | None, at: float, passed: float) -> list[Text]:
    share = "-"
    if old and old.cpu_s is not None and pod.cpu_s is not None and passed:
        share = f"{100 * max(0.0, pod.cpu_s - old.cpu_s) / passed:.1f} %"
    updates = "?" if pod.unknown is not None else str(len(pod.updates) or "-")
    return [
        Text(pod.pod, "bold"),
        Text(pod.state, _LOOKS.get(pod.state, "dim")),
        Text(duration(None if pod.since is None else int(at - pod.since))),
        Text(f"{pod.memory_bytes / 2**20:.1f} MiB" if pod.processes else "-"),
        Text(share),
        Text(str(pod.processes)),
        Text(updates, "yellow" if pod.updates else ""),
    ]


def _under_way(now: State) -> Iterator[Text]:
    for move in now.moves:
        where = f"to {move.host}" if move.host else "comes here"
        yield Text(f"move: {move.pod} {where}: {move.step}, {move.done_bytes >> 20} MiB", "cyan")
    if now.draining and now.drain:
        pods = ", ".join(f"{pod.pod} {pod.place}" for pod in now.drain.pods)
        yield Text(f"drain {now.drain.id}: {now.drain.phase}: {pods}", "cyan")


def _events(now: State) -> Iterator[Text]:
    for event in now.events[-_EVENTS:]:
        yield Text(f"{event.at.astimezone(UTC):%F %T}  {event.kind}: {event.text}", "dim")
