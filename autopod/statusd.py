"""`autopod statusd`: the service of a host. Other hosts reach it; it finishes what was broken off.

It accepts connections and starts a process for each (autopod/answer.py). It holds nothing that is
not on disk: it may be killed and started again at any moment.
"""

import os
import signal
import socket
import sys
from typing import Final

import trio

from autopod import hosts, journal
from launcher import pods
from launcher.places import Places

_AT_ONCE: Final = 16
_LOOK_S: Final = 15.0
_ANSWER: Final = (sys.executable, "-m", "autopod.answer")


async def serve(places: Places, listen: str) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        places: the instance.
        listen: the address to listen at; host `0.0.0.0` or `[::]` for all.

    Raises:
        Refused: this host has no name yet.
        OSError: the address cannot be had.
    """
    hosts.load_own(places)
    host, port = hosts.split(listen)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        listeners = await trio.open_tcp_listeners(port, host=host)
        async with trio.open_nursery() as nursery:
            limit = trio.CapacityLimiter(_AT_ONCE)
            for listener in listeners:
                nursery.start_soon(_accept, listener, limit)
            nursery.start_soon(_keep_settling, places)
            _notify("READY=1")
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


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


def _notify(state: str) -> None:
    """Tell systemd, if it is there: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.connect("\0" + address[1:] if address.startswith("@") else address)
            to.sendall(state.encode())
