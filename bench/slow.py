"""Does a host end its pods because its store is merely slow? Agents, whose answers come late.

The agent of a host (autopod/fleet/agent.py) speaks with etcd through a proxy that keeps all that
comes back for a while, also while a connection is made. Read is what the agent itself has written
down of how long its lease is good: by that it freezes and kills.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import tomli_w
import trio

from autopod import hosts
from autopod.fleet.fence import boottime, stage
from bench.fleet import Cluster
from launcher.places import Places
from tests.kernel.fleet import etcd

TTL_S = 60
WATCHED_S = 150
CAPTION = (
    f"Agents, with leases of {TTL_S} s, watched for {WATCHED_S} s, each of which hears from etcd "
    "so much later; the making of a connection is late, too."
)
DELAYS_S = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def measure(scratch: Path) -> list[tuple[str, ...]]:
    """Return the table, as lines of cells."""
    (scratch / "slow").mkdir()
    with etcd.running(scratch / "slow") as cluster:
        found = trio.run(_all, scratch / "slow", Cluster(cluster).fleet)
    lines = [("each answer late by", "least left of the lease", "the host's pods would")]
    for delay, left in sorted(found.items()):
        what = {"run": "run on", "freeze": "be frozen", "kill": "be killed"}
        shown = f"{left:.0f} s of {TTL_S}" if left > -TTL_S else "it has none"
        lines.append((f"{delay} s", shown, what[stage(0, left, TTL_S)]))
    return lines


async def _all(directory: Path, fleet) -> dict[float, float]:
    found: dict[float, float] = {}
    async with trio.open_nursery() as proxies:
        async with trio.open_nursery() as agents:
            for delay in DELAYS_S:
                endpoints = [await _proxy(proxies, one, delay) for one in fleet.endpoints]
                told = msgspec.structs.replace(fleet, endpoints=endpoints, patience_s=10)
                places = _host(directory / str(delay), told)
                agents.start_soon(_watch, places, delay, found)
        proxies.cancel_scope.cancel()
    return found


def _host(prefix: Path, fleet) -> Places:
    places = Places(prefix)
    hosts.init(places, f"h{prefix.name.replace('.', '-')}", "192.0.2.1")
    table = {key: value for key, value in msgspec.to_builtins(fleet).items() if value}
    more = {"recover": os.fspath(prefix), "ttl_s": TTL_S}
    (prefix / "etc/autopod/autopod.toml").write_text(tomli_w.dumps({"fleet": {**table, **more}}))
    return places


async def _proxy(nursery: trio.Nursery, endpoint: str, delay: float) -> str:
    port = urlsplit(endpoint).port
    serve = partial(_pass_on, port=port, delay=delay)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    return f"https://127.0.0.1:{listener.socket.getsockname()[1]}"


async def _pass_on(client: trio.SocketStream, *, port: int, delay: float) -> None:
    server = await trio.open_tcp_stream("127.0.0.1", port)
    send, receive = trio.open_memory_channel[tuple[float, bytes]](1000)

    async def ask() -> None:
        async for data in client:
            await server.send_all(data)
        await server.send_eof()

    async def keep() -> None:
        async for data in server:
            await send.send((trio.current_time() + delay, bytes(data)))
        await send.aclose()

    async def tell() -> None:
        async for at, data in receive:
            await trio.sleep_until(at)
            await client.send_all(data)
        nursery.cancel_scope.cancel()

    try:
        async with client, server, trio.open_nursery() as nursery:
            for task in (ask, keep, tell):
                nursery.start_soon(task)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def _watch(places: Places, delay: float, found: dict[float, float]) -> None:
    """Let an agent run; note how much was left of its lease when least was, after it had one."""
    argv = [sys.executable, "-m", "autopod.fleet.agent"]
    environment = {**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)}
    least, begin = float("inf"), time.monotonic()
    with (places.prefix / "log").open("wb") as log:
        run = partial(trio.run_process, argv, env=environment, stdin=subprocess.PIPE, stderr=log)
        async with trio.open_nursery() as nursery:
            agent = await nursery.start(run)
            while time.monotonic() < begin + WATCHED_S:
                await trio.sleep(0.2)
                state = places.runs() / "fleet.json"
                if state.exists():
                    good_until = json.loads(state.read_bytes())["good_until"]
                    least = min(least, good_until - boottime())
            await agent.stdin.aclose()
    found[delay] = least if least < float("inf") else -float("inf")
