"""`python -m autopod.web`: the process that serves the page, until its standard input ends."""

import logging
import signal
import socket
import ssl
import sys
from functools import partial
from ipaddress import IPv4Address, IPv6Address

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from autopod.errors import Refused
from autopod.status import policy
from autopod.status.policy import Policy
from autopod.web import auth, ended, state
from autopod.web.app import App
from autopod.web.auth import Gate
from autopod.web.ended import Ended
from autopod.web.feed import Feed
from autopod.web.guard import Guard
from autopod.web.jobs import Jobs
from autopod.web.listening import Web
from launcher import commandline
from launcher.places import Places


def main() -> int:
    """Be the process."""
    places = Places.from_environment()
    try:
        settings = policy.load(places)
        address = settings.web.address()
        if address is None:
            return 0
        tokens = auth.ensure(places)
        gate = Gate(tokens, settings.web, Ended(ended.path(places)))
        config = _config(settings.web, *address)
        trio.run(_run, places, settings, gate, config)
    except Exception as e:  # noqa: BLE001 (it is told, and the service starts it again)
        commandline.complain("autopod", e)
        return 1
    return 0


async def _run(places: Places, settings: Policy, gate: Gate, config: Config) -> None:
    def changed() -> None:
        feed.poke()

    async with trio.open_nursery() as nursery:
        jobs = Jobs(places, nursery, changed)
        feed = Feed(partial(state.look, places, settings), jobs)
        web = settings.web
        app = App(gate, feed, jobs, web, settings.fleet if web.fleetlock else None)
        guarded = Guard(app.starlette(), auth.own_names(web))
        await serve(guarded, config, shutdown_trigger=_told_to_end)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()  # commands go on


def _config(web: Web, address: IPv4Address | IPv6Address, port: int) -> Config:
    """Return what the server is told. Whatever can be wrong is found here, and has a name.

    Raises:
        Refused: the address cannot be had, or the certificate cannot be used.
    """
    config = Config()
    config.alpn_protocols = ["http/1.1"]
    config.include_server_header = False
    config.graceful_timeout = 1
    config.errorlog = logging.getLogger("autopod.web")
    if web.certificate is not None:
        config.certfile, config.keyfile = web.certificate, web.key
    if web.client_ca is not None:
        config.ca_certs, config.verify_mode = web.client_ca, ssl.CERT_REQUIRED
    try:
        config.create_ssl_context()
    except OSError as e:
        files = " ".join(one for one in (web.certificate, web.key, web.client_ca) if one)
        raise Refused(f"the page's certificate cannot be used: {e.strerror}: {files}") from e
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        listener = socket.create_server((str(address), port), family=family)
    except OSError as e:
        raise Refused(f"the page cannot listen at {web.listen}: {e.strerror}") from e
    config.bind = [f"fd://{listener.detach()}"]
    return config


async def _told_to_end() -> None:
    """Wait for SIGTERM, or for the end of who has started us: then standard input ends, too."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_signalled, nursery.cancel_scope)
        nursery.start_soon(_alone, nursery.cancel_scope)


async def _signalled(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


async def _alone(scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(sys.stdin.fileno())  # nothing is ever written there
    scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
