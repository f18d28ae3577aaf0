"""One connection of another host, answered by a process of its own: `python -m autopod.answer`.

It may fork, trace and enter namespaces, for it has one thread and no event loop; and its death is
that of one connection. The service (autopod/statusd.py) gives it the connection as standard input.
"""

import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from autopod import joining, journal, overlay, wire
from autopod.errors import Refused
from launcher import commandline, pods
from launcher.errors import Locked
from launcher.lock import locked
from launcher.places import Places


def serve(places: Places, plain: socket.socket) -> None:
    """Do what the other host asks for; tell it what fails.

    Raises:
        LinkCut: it is not known here, or goes away.
    """
    with wire.answer(places, plain) as link:
        try:
            _answer(places, link)
        except wire.LinkCut:
            raise
        except Exception as e:  # noqa: BLE001 (whatever it is, the other host is told)
            commandline.complain("autopod", e)
            link.refuse(commandline.findings("autopod", e))


def settle(places: Places) -> None:
    """Bring to an end what was broken off: pods that came, and pods that left.

    What is being worked on is left alone, and what fails is told.
    """
    for session in journal.unfinished(places):
        _try(partial(_finish, places, session))
    for pod in pods.names(places):
        if journal.is_moving(places, pod):
            _try(partial(_settle, places, pod))


def _answer(places: Places, link: wire.Link) -> None:
    request = link.receive(wire.Join, wire.Offer, wire.Ask)
    if isinstance(request, wire.Join):
        link.send(joining.answer(places, request))
        _try(partial(overlay.follow, places))
    elif not link.peer:
        raise Refused("a host that is not known here asks for more than to join")
    else:
        _serve(places, link, request)


def _serve(places: Places, link: wire.Link, request: wire.Message) -> None:
    from autopod import receive  # heavy, as what restarts pods is: for those only who need it

    if isinstance(request, wire.Offer):
        receive.receive(places, link, request)
    elif isinstance(request, wire.Ask):
        link.send(receive.answer(places, link.peer, request.session))


def _finish(places: Places, session: str) -> None:
    from autopod import receive

    receive.finish(places, session, patience_s=0)


def _settle(places: Places, pod: str) -> None:
    from autopod import leaving, receive

    with locked(places, pod):
        receive.clear(places, pod)
        if leaving.settle(places, pod):
            leaving.leave(places, pod)


def _try(act: Callable[[], object]) -> None:
    try:
        act()
    except Locked:
        pass
    except Exception as e:  # noqa: BLE001 (the others are to be settled, too)
        commandline.complain("autopod", e)


def _main() -> int:
    places = Places.from_environment()
    if sys.argv[1:] == ["settle"]:
        settle(places)
        return 0
    with socket.socket(fileno=0) as plain:
        try:
            serve(places, plain)
        except wire.LinkCut as e:
            commandline.complain("autopod", e)
            return 1
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(_main())
