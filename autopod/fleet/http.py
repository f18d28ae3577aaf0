"""As much of an HTTP/1.1 client as etcd's gateway needs: POST, kept connections, endless answers.

h11 knows the protocol, trio moves the bytes. Nothing here is an asynchronous generator: those are
not over when one stops to use them.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import h11
import trio

_PIECE: Final = 1 << 16
MAX_BODY: Final = 64 << 20


class HttpError(Exception):
    """There is no answer, or not a whole one."""


class TooLate(HttpError):  # noqa: N818 (what is the case)
    """There is no answer yet."""


class Connection:
    """A connection to a server; open()."""

    def __init__(self, stream: trio.abc.Stream, host: str) -> None:
        self._stream, self._host = stream, host
        self._protocol = h11.Connection(h11.CLIENT)
        self._rest = b""  # of the answer, read and not yet told

    @classmethod
    async def open(cls, url: str, tls: ssl.SSLContext, timeout_s: float) -> "Connection":
        """Connect to the server of *url*.

        Raises:
            HttpError: it does not listen, or is another one.
        """
        with _in_time(url, timeout_s):
            return await cls._open(url, tls)

    @classmethod
    async def _open(cls, url: str, tls: ssl.SSLContext) -> "Connection":
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
        except OSError as e:
            raise HttpError(f"{parts.netloc}: {e}") from e
        if parts.scheme == "https":
            secure = trio.SSLStream(stream, tls, server_hostname=host, https_compatible=True)
            try:
                await secure.do_handshake()
            except trio.BrokenResourceError as e:
                await trio.aclose_forcefully(stream)
                raise HttpError(f"{parts.netloc}: {e.__cause__ or e}") from e
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            stream = secure
        return cls(stream, parts.netloc)

    async def post(self, path: str, headers: dict[str, str], body: bytes, timeout_s: float) -> int:
        """Send a request; return the status of the answer, which is to be read() then.

        Raises:
            HttpError: there is none.
        """
        fields = {
            "Host": self._host,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }
        request = h11.Request(method="POST", target=path, headers=list(fields.items()))
        with _in_time(self._host, timeout_s):
            for event in (request, h11.Data(data=body), h11.EndOfMessage()):
                await self._send(event)
            while True:
                got = await self._next()
                if isinstance(got, h11.Response):
                    return got.status_code
                if not isinstance(got, h11.InformationalResponse):
                    raise HttpError(f"{self._host}: no answer: {got!r}")

    async def read_line(self, silence_s: float) -> bytes:
        """Return the next line of the answer; b"" at its end.

        Raises:
            HttpError: it was cut off, or says nothing for so long.
        """
        while b"\n" not in self._rest:
            with _in_time(self._host, silence_s):
                piece = await self._read()
            if not piece:
                line, self._rest = self._rest, b""
                return line
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def read_all(self, timeout_s: float) -> bytes:
        """Return the whole answer.

        Raises:
            HttpError: it was cut off, or is more than MAX_BODY.
        """
        whole = b""
        with _in_time(self._host, timeout_s):
            while piece := await self._read():
                whole += piece
                if len(whole) > MAX_BODY:
                    raise HttpError(f"{self._host}: an answer of more than {MAX_BODY} bytes")
        return whole

    def reuse(self) -> bool:
        """Make ready for another request, after the last answer was read; can there be one?"""
        if self._protocol.our_state is self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
            return True
        return False

    async def aclose(self) -> None:
        """Close it at once."""
        await trio.aclose_forcefully(self._stream)

    async def _send(self, event: "h11.Request | h11.Data | h11.EndOfMessage") -> None:
        data = self._protocol.send(event)
        try:
            await self._stream.send_all(data or b"")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as e:
            raise HttpError(f"{self._host}: {e.__cause__ or e}") from e

    async def _read(self) -> bytes:
        """Return a piece of the answer; b"" at its end."""
        while True:
            event = await self._next()
            if isinstance(event, h11.EndOfMessage):
                return b""
            if not isinstance(event, h11.Data):
                raise HttpError(f"{self._host}: the answer was cut off")
            if event.data:
                return bytes(event.data)

    async def _next(self) -> object:
        while True:
            try:
                event = self._protocol.next_event()
                if event is not h11.NEED_DATA:
                    return event
                self._protocol.receive_data(bytes(await self._stream.receive_some(_PIECE)))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as e:
                raise HttpError(f"{self._host}: {e.__cause__ or e}") from e
            except h11.RemoteProtocolError as e:
                raise HttpError(f"{self._host}: not HTTP: {e}") from e


@contextmanager
def _in_time(host: str, timeout_s: float) -> Iterator[None]:
    try:
        with trio.fail_after(timeout_s):
            yield
    except trio.TooSlowError as e:
        raise TooLate(f"{host}: no answer in time") from e
