"""`autopod statusd`: the service of a host. Other hosts reach it; it finishes what was broken off.

It accepts connections and starts a process for each (autopod/answer.py), and one at intervals that
looks after the host (autopod/status/cycle.py). Beside it run, where the policy has them, the page
(autopod/web/), who tells people (autopod/status/notices.py), and who keeps the host in its fleet
(autopod/fleet/agent.py). It holds nothing that is not on disk: it may be killed and started again
at any moment.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import Final

import trio

from autopod import hosts, journal, overlay
from autopod.notify import notify, watchdog_s
from autopod.status import policy, store
from launcher import pods
from launcher.places import Places

_AT_ONCE: Final = 16
_LOOK_S: Final = 15.0
_ANSWER: Final = (sys.executable, "-m", "autopod.answer")
_AGENT: Final = (sys.executable, "-m", "autopod.fleet.agent")
_CYCLE: Final = (sys.executable, "-m", "autopod.status.cycle")
_INHIBIT: Final = (sys.executable, "-m", "autopod.status.inhibit")
_OVERLAY: Final = (sys.executable, "-m", "autopod.cli", "overlay", "sync")
_NOTICES: Final = (sys.executable, "-m", "autopod.status.notices")
_WEB: Final = (sys.executable, "-m", "autopod.web")
_PAUSE_S: Final = 1.0
_LONGEST_S: Final = 60.0


async def serve(places: Places, listen: str) -> None:
    """Serve until SIGTERM or SIGINT.

    A host that has no name yet is looked after, but is not reached by others.

    Args:
        places: the instance.
        listen: the address to listen at; host `0.0.0.0` or `[::]` for all.

    Raises:
        ConfigError: the host's policy cannot be understood.
        OSError: the address cannot be had.
    """
    settings = policy.load(places)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            if every := watchdog_s():
                nursery.start_soon(_keep_telling, every)
            if settings.notify:
                nursery.start_soon(_keep_running, _NOTICES, _LONGEST_S)
            if settings.act.hold_shutdown:
                nursery.start_soon(_keep_running, _INHIBIT, _LONGEST_S)
            if settings.web.listen is not None:
                nursery.start_soon(_keep_running, _WEB, _LONGEST_S)
            if settings.fleet is not None:
                longest_s = min(_LOOK_S, settings.fleet.ttl_s / 6)
                nursery.start_soon(_keep_running, _AGENT, longest_s)
            nursery.start_soon(_serve, places, listen, settings.service.every_s, nursery)
            async for _ in signals:
                notify("STOPPING=1")
                nursery.cancel_scope.cancel()
                break


async def _serve(places: Places, listen: str, every_s: float, nursery: trio.Nursery) -> None:
    """Bring pods back that a reboot has interrupted; then be reached, and look after the host."""
    if store.path(places).exists():
        await _run_cycle("resume")
    if hosts.has_name(places):
        host, port = hosts.split(listen)
        if overlay.is_wanted(places):
            nursery.start_soon(_have_overlay)
        limit = trio.CapacityLimiter(_AT_ONCE)
        for listener in await trio.open_tcp_listeners(port, host=host):
            nursery.start_soon(_accept, listener, limit)
        nursery.start_soon(_keep_settling, places)
    if every_s:
        nursery.start_soon(_keep_looking, every_s)
    notify("READY=1")


async def _have_overlay() -> None:
    """Make the overlay what it is to be: the host may have just booted, without a network yet."""
    pause = _PAUSE_S
    while (await trio.run_process(_OVERLAY, stdin=b"", check=False)).returncode:
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_S)


async def _accept(listener: trio.SocketListener, limit: trio.CapacityLimiter) -> None:
    async with listener, trio.open_nursery() as nursery:
        while True:
            stream = await listener.accept()
            await limit.acquire_on_behalf_of(stream)
            nursery.start_soon(_answer, stream, limit)


async def _answer(stream: trio.SocketStream, limit: trio.CapacityLimiter) -> None:
    try:
        async with stream:
            # Its ends of the socket is the only one from now on that reads or writes.
            await trio.run_process(_ANSWER, stdin=stream.socket.fileno(), check=False)
    finally:
        limit.release_on_behalf_of(stream)


async def _keep_settling(places: Places) -> None:
    """Look now and again for what was broken off; there is hardly ever anything."""
    while True:
        if _is_unsettled(places):
            await trio.run_process((*_ANSWER, "settle"), stdin=b"", check=False)
        await trio.sleep(_LOOK_S)


def _is_unsettled(places: Places) -> bool:
    moving = (journal.is_moving(places, pod) for pod in pods.names(places))
    return bool(journal.unfinished(places)) or any(moving)


async def _keep_looking(every_s: float) -> None:
    """Look after the host at intervals: autopod/status/cycle.py."""
    while True:
        await _run_cycle()
        await trio.sleep(every_s)


async def _run_cycle(*arguments: str) -> None:
    """Run a cycle; ended early, it is told so, and may bring to an end what must not be half done.

    Source: trio.run_process(), "deliver_cancel"; its own would kill after five seconds.
    """

    async def ask_to_end(process: trio.Process) -> None:
        process.terminate()

    argv = (*_CYCLE, *arguments)
    await trio.run_process(argv, stdin=b"", check=False, deliver_cancel=ask_to_end)


async def _keep_running(argv: tuple[str, ...], longest_s: float) -> None:
    """Have a process beside the service; it is started again when it ends, ever more slowly."""
    pause = shortest = min(_PAUSE_S, longest_s)
    while True:
        began = trio.current_time()
        with suppress(OSError):
            await _run_beside(argv)
        pause = shortest if trio.current_time() - began > longest_s else min(2 * pause, longest_s)
        await trio.sleep(pause)


async def _run_beside(argv: tuple[str, ...]) -> None:
    """Run a process that ends when its standard input does: with this one, however that ends.

    It may have something to bring to an end then, and is waited for.
    """
    ends = list(os.pipe2(os.O_CLOEXEC))

    async def ask_to_end(_process: trio.Process) -> None:
        os.close(ends.pop())

    try:
        await trio.run_process(argv, stdin=ends[0], check=False, deliver_cancel=ask_to_end)
    finally:
        for fd in ends:
            os.close(fd)


async def _keep_telling(every_s: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await trio.sleep(every_s)
