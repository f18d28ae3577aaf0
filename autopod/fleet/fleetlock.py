"""The FleetLock protocol: reboot slots for who asks by HTTP, as Zincati does. No server here.

    POST /v1/pre-reboot      fleet-lock-protocol: true
    POST /v1/steady-state    {"client_params": {"id": "ID", "group": "GROUP"}}

Status 200 says that the client has a slot, or that it has none any more; another one that it is not
so, with `{"kind": "no_slot", "value": "why"}`. Both requests may be repeated.

A client says by itself who it is. So it has slots as `fleetlock/ID`, and never that of a host of
ours, which it could give back in its stead.

Source: Zincati, docs/development/fleetlock/protocol.md.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from autopod.fleet import slots
from autopod.fleet.store import FleetError, Store
from autopod.status.policy import is_group

PATHS: Final = ("/v1/pre-reboot", "/v1/steady-state")
MAX_BODY: Final = 1 << 16
_HEADER: Final = "fleet-lock-protocol"
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class Answer(Struct, frozen=True):
    """What is sent back: `application/json`."""

    status: int
    body: bytes


class _Client(Struct):
    id: str
    group: str


class _Request(Struct):
    client_params: _Client


class _Wrong(Exception):  # noqa: N818 (what is the case)
    """A request is not one of the protocol."""

    def __init__(self, status: int, kind: str, value: str) -> None:
        super().__init__(value)
        self.answer = _error(status, kind, value)


async def answer(
    store: Store, limits: Mapping[str, int], path: str, headers: Mapping[str, str], body: bytes
) -> Answer:
    """Do what a POST request asks for.

    Args:
        store: of the fleet.
        limits: how many slots the groups have that may be asked for.
        path: one of PATHS.
        headers: by their names in any case.
        body: MAX_BODY at most.
    """
    try:
        client = _client(limits, path, headers, body)
    except _Wrong as e:
        return e.answer
    who, group = f"fleetlock/{client.id}", client.group
    try:
        if path == PATHS[0]:
            await slots.take(store, group, who, limits[group])
        else:
            await slots.give(store, group, who)
    except slots.NoSlot as e:
        return _error(409, "no_slot", str(e))
    except FleetError as e:
        return _error(503, "unavailable", str(e))
    return Answer(200, b"{}")


def _client(
    limits: Mapping[str, int], path: str, headers: Mapping[str, str], body: bytes
) -> _Client:
    """Return who asks. Pure.

    Raises:
        _Wrong: it is not asked as the protocol has it.
    """
    if path not in PATHS:
        raise _Wrong(404, "no_such_path", f"there are {' and '.join(PATHS)}")
    named = {name.lower(): value for name, value in headers.items()}
    if named.get(_HEADER, "").strip().lower() != "true":
        raise _Wrong(400, "no_protocol_header", f"the header {_HEADER}: true is missing")
    if len(body) > MAX_BODY:
        raise _Wrong(413, "too_long", f"the body has more than {MAX_BODY} bytes")
    try:
        client = msgspec.json.decode(body, type=_Request).client_params
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise _Wrong(400, "invalid_body", str(e)) from e
    if not _ID.fullmatch(client.id):
        raise _Wrong(400, "invalid_id", "use 1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-'")
    if not is_group(client.group):
        raise _Wrong(400, "invalid_group", "use 1 to 64 of A-Z, a-z, 0-9, '.' and '-'")
    if client.group not in limits:
        raise _Wrong(404, "no_such_group", f"there is no group {client.group!r} here")
    return client


def _error(status: int, kind: str, value: str) -> Answer:
    return Answer(status, msgspec.json.encode({"kind": kind, "value": value}))
