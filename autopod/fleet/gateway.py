"""etcd's JSON gateway: several members, mutual TLS, a user's token.

Each request is made of one member after the other until one answers, or patience is at an end. What
a request without an answer has done is not known; who must know asks again in a way that tells
(autopod/fleet/etcd.py). Where no answer comes in time the next one is waited for twice as long:
members that are slow would be asked for the same again and again, and made slower by that.

Source: etcd, Documentation/dev-guide/api_grpc_gateway.md, v3.4; grpc/codes/codes.go.
"""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import msgspec
import trio
from msgspec import Struct

from autopod.fleet.http import Connection, HttpError, TooLate
from autopod.fleet.store import FleetError, Unanswered

_REQUEST_S: Final = 2.0  # an answer takes, or another member is asked
_LONGEST_S: Final = 16.0  # where all are slow
_PAUSE_S: Final = 0.1
_SILENCE_S: Final = 60.0  # of a stream, after which it is begun anew: its member may be cut off
_DENIED, _EXHAUSTED, _UNAVAILABLE, _UNAUTHENTICATED = 7, 8, 14, 16
_AGAIN: Final = frozenset({1, 4, _UNAVAILABLE})  # cancelled, too late, no leader

_T = TypeVar("_T")

Json = dict[str, Any]


class Access(Struct, frozen=True):
    """How a cluster is reached.

    Attributes:
        endpoints: of its members, as `https://192.0.2.1:2379`.
        ca: file with the certificates of who signs the members'; None: the system's.
        certificate: file with this host's; None: none.
        key: file with its key.
        user: of etcd; None: without.
        password: the user's.
        patience_s: for how long it is tried to get an answer.
    """

    endpoints: list[str]
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None
    patience_s: float = 10.0


class Rejected(FleetError):  # noqa: N818 (what is the case)
    """etcd has answered that it does not do it; nothing was changed.

    Attributes:
        code: of gRPC.
    """

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class _Error(Struct, frozen=True):
    """An error, as it stands in an answer, or in a line of a stream ("grpc_code")."""

    code: int = 0
    grpc_code: int = 0
    message: str = ""


class _Failure(Struct, frozen=True):
    error: _Error | str = ""
    code: int = 0
    message: str = ""


class _Token(Struct, frozen=True):
    token: str = ""


class _NotNow(Exception):  # noqa: N818 (what is the case)
    """A member does not answer, or not yet."""


class Gateway:
    """The members of a cluster, of which one is asked."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._at = 0
        self._request_s = _REQUEST_S
        self._token: str | None = None
        self._tls = _tls(access)
        self._idle: dict[str, list[Connection]] = {}

    async def call(
        self, method: str, request: object, kind: type[_T], *, again: object = None
    ) -> _T:
        """Make a request until it is answered.

        Args:
            method: as `kv/range`.
            request: what becomes JSON.
            kind: of the answer.
            again: what takes the place of *request* after it may have been done without an answer.

        Raises:
            Rejected: it is not done.
            Unanswered: no member has answered.
        """
        why = "it does not answer"
        with trio.move_on_after(self._access.patience_s):
            while True:
                try:
                    return await self._call_one(method, request, kind)
                except _NotNow as e:
                    why = str(e)
                except Rejected as e:
                    if request is again:
                        raise Unanswered(f"{e}, after no answer came", e.hint) from e
                    raise
                request = request if again is None else again
                self._at += 1
                await trio.sleep(_PAUSE_S)
        names = ", ".join(self._access.endpoints)
        hint = "is a majority of its members running, and reachable from here?"
        raise Unanswered(f"etcd at {names}: {why}", hint)

    async def stream(
        self, method: str, request: object, kind: type[_T], each: Callable[[_T], Awaitable[bool]]
    ) -> None:
        """Pass on the lines of an endless answer of one member, while *each* says True.

        It ends when the member does, says nothing for long, or was not there at all.

        Raises:
            Rejected: it is not done.
        """
        try:
            headers = await self._headers()
            async with self._answer(method, request, headers) as (connection, status):
                while line := await connection.read_line(_SILENCE_S):
                    if not await each(self._decoded(line, status, kind)):
                        return
            self._at += 1
        except _NotNow:
            self._at += 1
        except Rejected as e:
            if self._token is None or not _is_stale(e):
                raise
            self._token = None

    async def aclose(self) -> None:
        """Close all connections."""
        for connections in self._idle.values():
            for connection in connections:
                await connection.aclose()
        self._idle = {}

    async def _call_one(self, method: str, request: object, kind: type[_T]) -> _T:
        try:
            return await self._post(method, request, kind, await self._headers())
        except Rejected as e:
            if self._token is None or not _is_stale(e):
                raise
            self._token = None
        return await self._post(method, request, kind, await self._headers())

    async def _headers(self) -> dict[str, str]:
        """Return what tells who asks; sign in first if need be."""
        user, password = self._access.user, self._access.password
        if user is None:
            return {}
        if self._token is None:
            asked = {"name": user, "password": password}
            self._token = (await self._post("auth/authenticate", asked, _Token, {})).token
        return {"Authorization": self._token}

    async def _post(
        self, method: str, request: object, kind: type[_T], headers: dict[str, str]
    ) -> _T:
        async with self._answer(method, request, headers) as (connection, status):
            answer = await connection.read_all(self._request_s)
        return self._decoded(answer, status, kind)

    @asynccontextmanager
    async def _answer(
        self, method: str, request: object, headers: dict[str, str]
    ) -> AsyncIterator[tuple[Connection, int]]:
        """Make a request, of which the answer is to be read; the connection is kept if it was.

        Raises:
            _NotNow: the member does not answer.
        """
        endpoint = self._access.endpoints[self._at % len(self._access.endpoints)]
        idle, body = self._idle.setdefault(endpoint, []), msgspec.json.encode(request)
        limit_s, begin = self._request_s, trio.current_time()
        try:
            connection = idle.pop() if idle else await Connection.open(endpoint, self._tls, limit_s)
            kept = False
            try:
                yield connection, await connection.post(f"/v3/{method}", headers, body, limit_s)
                kept = connection.reuse()
            finally:
                if kept:
                    idle.append(connection)
                else:
                    await connection.aclose()
        except TooLate as e:
            self._request_s = min(2 * limit_s, _LONGEST_S)
            raise _NotNow(str(e)) from e
        except HttpError as e:
            raise _NotNow(str(e)) from e
        if trio.current_time() < begin + _REQUEST_S:
            self._request_s = _REQUEST_S

    def _decoded(self, data: bytes, status: int, kind: type[_T]) -> _T:
        failure = _Failure()
        with suppress(msgspec.DecodeError):
            failure = msgspec.json.decode(data, type=_Failure, strict=False)
        if status != 200 or failure.error:
            raise self._failed(failure, status)
        try:
            return msgspec.json.decode(data, type=kind, strict=False)
        except msgspec.DecodeError as e:
            raise _NotNow(f"an answer that is not etcd's: {e}") from e

    def _failed(self, failure: _Failure, status: int) -> Exception:
        inner = failure.error if isinstance(failure.error, _Error) else _Error()
        code = failure.code or inner.grpc_code or inner.code
        message = failure.message or inner.message or f"HTTP status {status}"
        if not code or code in _AGAIN or (code == _EXHAUSTED and "too many" in message):
            return _NotNow(message)
        return Rejected(code, f"etcd: {message}", _hint(code, message))


def _tls(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if access.certificate:
            context.load_cert_chain(access.certificate, access.key)
    except OSError as e:  # SSLError is one
        files = ", ".join(filter(None, (access.ca, access.certificate, access.key)))
        raise FleetError(f"{files}: {e}", "see fleet.ca, fleet.certificate and fleet.key") from e
    return context


def _is_stale(rejected: Rejected) -> bool:
    """Is a token no longer known, or older than the last change of users and roles?"""
    return rejected.code == _UNAUTHENTICATED or "auth: revision" in str(rejected)


def _hint(code: int, message: str) -> str:
    if code == _DENIED:
        return "the role of fleet.user lacks a permission: docs/fleet.md"
    if code == _EXHAUSTED:
        return "etcdctl compact, defrag and alarm disarm make room"
    if code == _UNAUTHENTICATED or "authentication" in message or "user name" in message:
        return "see fleet.user and fleet.password_file"
    return ""
