"""What a Prometheus server says against a reboot, by a query of the policy's.

Source: prometheus.io/docs, "HTTP API", "Instant queries" and "Expression query result formats".
"""

import math
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from launcher.toml import Table, reject

_ANSWER_S: Final = 15
_MOST_BYTES: Final = 1 << 20
_WORDS: Final = 200

_Value = tuple[float, str]


class Query(Table, frozen=True):
    """A question to a Prometheus server, the answer to which may speak against a reboot.

    Attributes:
        url: of the server, as `http://192.0.2.1:9090`.
        query: an expression of PromQL.
        above: blocked while a value is greater; None: while there is any.
    """

    url: str
    query: str
    above: float | None = None

    def __post_init__(self) -> None:
        found = urlsplit(self.url)
        if found.scheme not in {"http", "https"} or not found.hostname or found.query:
            reject("url", self.url, "use http://HOST:PORT or https://HOST:PORT")
        if not self.query.strip():
            reject("query", self.query, "it asks nothing")


class _Sample(Struct):
    metric: dict[str, str]
    value: _Value


class _Vector(Struct, tag="vector", tag_field="resultType"):
    result: list[_Sample]


class _Scalar(Struct, tag="scalar", tag_field="resultType"):
    result: _Value


class _Success(Struct, tag="success", tag_field="status"):
    data: _Vector | _Scalar


class _Error(Struct, tag="error", tag_field="status"):
    error: str = "it does not say why"


def against(asked: Query) -> str | None:
    """Return why the query speaks against a reboot; None: it does not.

    What cannot be asked or understood speaks against it.
    """
    try:
        return said(asked, _ask(asked))
    except (OSError, HTTPException, ValueError) as e:
        return _line(f"{_where(asked)} cannot be asked: {e}")


def said(asked: Query, answer: bytes) -> str | None:
    """Return what an answer means. Pure."""
    try:
        found = msgspec.json.decode(answer, type=_Success | _Error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return _line(f"{_where(asked)} does not answer as Prometheus does: {e}")
    if isinstance(found, _Error):
        return _line(f"{_where(asked)}: {found.error}")
    samples = _samples(found.data)
    if asked.above is not None:
        limit = asked.above
        samples = [one for one in samples if not _number(one[1]) <= limit]  # NaN is not
    if not samples:
        return None
    name, value = samples[0]
    more = f", and {len(samples) - 1} more" if len(samples) > 1 else ""
    return _line(f"{_where(asked)}: {asked.query}: {name} is {value}{more}")


def _samples(data: _Vector | _Scalar) -> list[tuple[str, str]]:
    if isinstance(data, _Scalar):
        return [("it", data.result[1])]
    return [(_name(one.metric), one.value[1]) for one in data.result]


def _name(metric: dict[str, str]) -> str:
    """Return a metric as PromQL writes it."""
    labels = ",".join(f'{key}="{metric[key]}"' for key in sorted(metric) if key != "__name__")
    return metric.get("__name__", "") + (f"{{{labels}}}" if labels else "") or "it"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _where(asked: Query) -> str:
    return f"Prometheus at {urlsplit(asked.url).hostname}"


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_WORDS]


def _ask(asked: Query) -> bytes:
    """Return the answer, whatever its status; an error's body says what is wrong.

    Raises:
        OSError, HTTPException, ValueError: there is none.
    """
    url = f"{asked.url.rstrip('/')}/api/v1/query"
    body = urllib.parse.urlencode({"query": asked.query, "timeout": f"{_ANSWER_S}s"}).encode()
    request = urllib.request.Request(  # noqa: S310 (its scheme was looked at)
        url, data=body, headers={"User-Agent": "autopod"}, method="POST"
    )
    end = time.monotonic() + _ANSWER_S
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:  # noqa: S310
            got = bytearray()
            while piece := answer.read1(_MOST_BYTES):
                got += piece
                if len(got) > _MOST_BYTES or time.monotonic() > end:
                    raise ValueError("its answer is too long, or takes too long")
            return bytes(got)
    except urllib.error.HTTPError as e:
        with e:
            content = e.read(_MOST_BYTES)
            return content if content.lstrip().startswith(b"{") else _status(e.code)


def _status(code: int) -> bytes:
    return msgspec.json.encode({"status": "error", "error": f"it answers {code}"})
