"""What is served: routes, and who may use them."""

import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from autopod.errors import Refused
from autopod.fleet import client, fleetlock
from autopod.fleet.store import FleetError
from autopod.status.policy import Fleet
from autopod.web import jobs, metrics
from autopod.web.auth import SESSION_S, Claims, Gate, Role
from autopod.web.feed import Feed
from autopod.web.jobs import Action, Jobs
from autopod.web.listening import Web

_STATIC: Final = Path(__file__).with_name("static")
_FILES: Final = {
    "page.js": "text/javascript",
    "login.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_COOKIE: Final = "autopod"
_SECRET: Final = "X-Autopod-Secret"  # noqa: S105 (a header's name)
_MOST: Final = 4096
_BODY_S: Final = 10
_STREAMS: Final = 32
_STREAM_S: Final = 3600
_BEAT_S: Final = 15

_Endpoint = Callable[[Request], Awaitable[Response]]


class _Login(msgspec.Struct, forbid_unknown_fields=True):
    token: str


class App:
    """The application, and what it works with."""

    def __init__(
        self, gate: Gate, feed: Feed, jobs_: Jobs, web: Web, fleet: Fleet | None = None
    ) -> None:
        """Make it.

        Args:
            gate: decides who may.
            feed: has the state.
            jobs_: runs commands.
            web: who reaches it how.
            fleet: whose reboot slots may be asked for by FleetLock; None: nobody's.
        """
        self._gate, self._feed, self._jobs = gate, feed, jobs_
        self._fleet = fleet
        self._tls, self._certified = web.certificate is not None, web.client_ca is not None
        self._streams = trio.CapacityLimiter(_STREAMS)
        # A cookie with that prefix is from this very host, and was set over TLS (RFC 6265bis).
        self._cookie = f"__Host-{_COOKIE}" if self._tls else _COOKIE

    def starlette(self) -> Starlette:
        """Return it for a server."""
        routes = [
            Route("/", self._page),
            Route("/login", self._login_page, methods=["GET"]),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
            Route("/static/{name}", self._static),
            Route("/api/state", self._state),
            Route("/api/events", self._events),
            Route("/api/act", self._act, methods=["POST"]),
            Route("/metrics", self._metrics),
        ]
        if self._fleet is not None:
            routes += [Route(path, self._lock, methods=["POST"]) for path in fleetlock.PATHS]
        return Starlette(routes=routes)

    async def _page(self, request: Request) -> Response:
        if self._gate.visitor(self._claims(request), time.time()) is None:
            return RedirectResponse("/login", 303)
        return FileResponse(_STATIC / "index.html")

    async def _login_page(self, _request: Request) -> Response:
        return FileResponse(_STATIC / "login.html")

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            return _said(404, "there is no such file")
        return FileResponse(_STATIC / name, media_type=_FILES[name])

    async def _login(self, request: Request) -> Response:
        try:
            said = msgspec.json.decode(await _body(request), type=_Login)
        except (msgspec.DecodeError, Refused) as e:
            return _said(400, str(e))
        claims = self._claims(request)
        session = self._gate.login(said.token, claims, time.time())
        if said.token:
            _log(claims, "logs in" if session else "brings a wrong token")
        if session is None:
            return _said(403, "that is not the token" if said.token else "a token is needed")
        answer = _json(200, {"role": session.role, "secret": session.secret})
        self._set_cookie(answer, session.cookie, SESSION_S)
        return answer

    async def _logout(self, request: Request) -> Response:
        claims = self._claims(request)
        if self._gate.acts(claims, time.time()) is None:
            return _said(401, "log in")
        self._gate.end(claims, time.time())
        _log(claims, "logs out")
        answer = _json(200, {})
        self._set_cookie(answer, "", 0)
        return answer

    def _set_cookie(self, answer: Response, value: str, age_s: int) -> None:
        answer.set_cookie(
            self._cookie,
            value,
            max_age=age_s,
            path="/",
            secure=self._tls,
            httponly=True,
            samesite="strict",
        )

    async def _state(self, request: Request) -> Response:
        if self._reader(request) is None:
            return _said(401, "log in")
        return Response(await self._feed.json(), media_type="application/json")

    async def _metrics(self, request: Request) -> Response:
        if self._reader(request) is None:
            return _said(401, "a token is needed: Authorization: Bearer …")
        said = metrics.text(await self._feed.state())
        return Response(said, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _events(self, request: Request) -> Response:
        if self._reader(request) is None:
            return _said(401, "log in")
        if self._streams.available_tokens == 0:
            return _said(503, "too many watch already")
        return _Stream(self._feed, self._streams, lambda: self._reader(request) is not None)

    async def _act(self, request: Request) -> Response:
        claims = self._claims(request)
        role = self._gate.acts(claims, time.time())
        if role is None:
            return _said(401, "log in")
        if role != "admin":
            return _said(403, "this token is for reading")
        try:
            action = msgspec.json.decode(await _body(request), type=Action)
            state = await self._feed.state()
            pods = [pod.pod for pod in state.pods]
            hosts = [row.host for row in state.hosts if not row.own]
            argv = jobs.words(action, pods, hosts, self._jobs)
            job = await self._jobs.start(action.__struct_config__.tag, argv)
        except (msgspec.DecodeError, Refused) as e:
            return _said(400, str(e))
        _log(claims, shlex.join(job.words))
        return _json(202, {"job": job.number})

    async def _lock(self, request: Request) -> Response:
        """FleetLock. Its header is one that no page of another host can have a browser send."""
        assert self._fleet is not None  # noqa: S101 (for the type checker)
        limits = {self._fleet.group: self._fleet.slots}
        path, headers = request.url.path, dict(request.headers)
        try:
            body = await _read(request, fleetlock.MAX_BODY)
            async with client.opened(self._fleet) as store:
                said = await fleetlock.answer(store, limits, path, headers, body)
        except Refused as e:
            return _json(400, {"kind": "invalid_body", "value": str(e)})
        except FleetError as e:
            return _json(503, {"kind": "unavailable", "value": str(e)})
        return Response(said.body, said.status, media_type="application/json")

    def _reader(self, request: Request) -> Role | None:
        return self._gate.reads(self._claims(request), time.time())

    def _claims(self, request: Request) -> Claims:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return Claims(
            peer=request.client.host if request.client else "0.0.0.0",  # noqa: S104 (nobody's)
            certified=self._certified,
            bearer=token.strip() if scheme.lower() == "bearer" else None,
            cookie=request.cookies.get(self._cookie),
            secret=request.headers.get(_SECRET),
        )


class _Stream(Response):
    """Server-sent events: the state, each time it is another one.

    Source: HTML Living Standard, section 9.2.
    """

    def __init__(self, feed: Feed, limit: trio.CapacityLimiter, may: Callable[[], bool]) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._feed, self._limit, self._may = feed, limit, may

    async def __call__(  # type: ignore[explicit-override]
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send until the browser goes, or may not any more; after an hour it comes again."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with trio.move_on_after(_STREAM_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
                await self._limit.acquire_on_behalf_of(self)
                try:
                    await send(head)
                    await self._send_states(send)
                    await send({"type": "http.response.body"})
                finally:
                    self._limit.release_on_behalf_of(self)
                nursery.cancel_scope.cancel()

    async def _send_states(self, send: Send) -> None:
        before, beat = b"", trio.current_time()
        while self._may():
            now = await self._feed.json()
            what = now.partition(b',"')[2]  # all but the time of the look
            if what != before:
                before, beat = what, trio.current_time()
                await _send(send, b"event: state\ndata: " + now + b"\n\n")
            elif trio.current_time() - beat > _BEAT_S:
                beat = trio.current_time()
                await _send(send, b": still here\n\n")
            await self._feed.pause()


def _log(claims: Claims, what: str) -> None:
    sys.stderr.write(f"autopod: page: {claims.peer}: {what}\n")


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _body(request: Request) -> bytes:
    """Return a request's body, which is JSON and says so: no form of another page can.

    Raises:
        Refused: it does not, is too long, or does not come.
    """
    if request.headers.get("Content-Type") != "application/json":
        raise Refused("Content-Type must be application/json")
    return await _read(request, _MOST)


async def _read(request: Request, most: int) -> bytes:
    """Return a request's body.

    Raises:
        Refused: it is longer than *most*, or does not come.
    """
    body = b""
    with trio.move_on_after(_BODY_S) as scope:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise Refused("the request is too long")
    if scope.cancelled_caught:
        raise Refused("the request does not come to its end")
    return body


def _json(status: int, said: object) -> Response:
    return Response(msgspec.json.encode(said), status, media_type="application/json")


def _said(status: int, error: str) -> Response:
    return _json(status, {"error": error})
