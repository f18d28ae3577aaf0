"""Two hosts become known to each other: one invites, the other joins.

The invitation is a secret and the fingerprint of the inviting host's certificate. Who joins knows
by the latter whom it talks to; who has invited knows by the former who talks. It holds once, for an
hour, and until the next reboot.
"""

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Final

from autopod import hosts, wire
from autopod.errors import Refused
from autopod.hosts import Host
from launcher.places import Places

_VALID_S: Final = 3600
_INVITATION: Final = re.compile(r"([0-9a-f]{64})([0-9a-f]{32})")


def invite(places: Places) -> str:
    """Return a new invitation to this host.

    Raises:
        Refused: it has no name yet.
    """
    secret = os.urandom(16).hex()
    file = _file(places, secret)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    return _own(places).fingerprint + secret


def join(places: Places, address: str, invitation: str) -> str:
    """Make this host and the one at *address*, which has invited it, known to each other.

    Returns:
        The other one's name.

    Raises:
        Refused: that is no invitation, or a name is taken.
        LinkCut, PeerFailed: the other host does not answer, or not agree.
    """
    form = _INVITATION.fullmatch(invitation)
    if form is None:
        raise Refused("that is no invitation", "autopod host invite, on the other host, prints one")
    fingerprint, secret = form.groups()
    own = hosts.load_own(places)
    with wire.connect_unknown(hosts.with_port(address), fingerprint) as link:
        link.send(wire.Join(secret, own.name, _own(places)))
        joined = link.receive(wire.Joined)
    if joined.host.fingerprint != fingerprint:
        raise Refused("the other host has sent another certificate than it has shown")
    hosts.save(places, joined.name, Host(hosts.with_port(address), joined.host.certificate))
    return joined.name


def answer(places: Places, request: wire.Join) -> wire.Joined:
    """Let a host join that has been invited.

    Raises:
        Refused: it has not been, or its name is taken.
    """
    file = _file(places, request.secret)
    try:
        made = file.stat().st_mtime
        file.unlink()  # one of two that try succeeds
    except FileNotFoundError:
        made = 0.0
    if time.time() - made > _VALID_S:
        raise Refused("the invitation does not hold, or no longer", "ask for a new one")
    hosts.save(places, request.name, request.host)
    return wire.Joined(hosts.load_own(places).name, _own(places))


def _own(places: Places) -> Host:
    own = hosts.load_own(places)
    return Host(own.address, hosts.own_certificate(places).read_text())


def _file(places: Places, secret: str) -> Path:
    """Where an invitation is remembered: its secret is not."""
    name = hashlib.sha256(secret.encode()).hexdigest()
    return places.runs() / ".invitations" / name
