"""A Prometheus server speaks against a reboot. The server is one of the test's, with the answers of
the documented interface."""

import json
import socket
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from autopod.status import cycle, prometheus
from autopod.status.policy import Act
from autopod.status.prometheus import Query

FIRING = {"metric": {"__name__": "ALERTS", "alertname": "Disk"}, "value": [1764300000.1, "1"]}


@contextmanager
def serving(status, content):
    """Have a server that answers so; what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append((self.path, urllib.parse.parse_qs(body)["query"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


def vector(*samples):
    return answer("vector", list(samples))


def answer(kind, result):
    data = {"resultType": kind, "result": result}
    return json.dumps({"status": "success", "data": data}).encode()


def test_it_is_asked():
    with serving(200, vector(FIRING, FIRING)) as (url, asked):
        act = Act(blocked_by_users=False, blocked_by_query=[Query(url, "ALERTS > 0")])
        [why] = cycle.blockers(act)
    assert asked == [("/api/v1/query", ["ALERTS > 0"])]
    expected = 'Prometheus at 127.0.0.1: ALERTS > 0: ALERTS{alertname="Disk"} is 1, and 1 more'
    assert why == expected
    with serving(200, vector()) as (url, asked):
        assert prometheus.against(Query(url, "ALERTS")) is None


@pytest.mark.parametrize(
    ("content", "above", "says"),
    [
        (vector({"metric": {}, "value": [1, "0.5"]}), 0.5, None),
        (vector({"metric": {}, "value": [1, "0.6"]}), 0.5, "it is 0.6"),
        (vector({"metric": {}, "value": [1, "NaN"]}), 0.5, "it is NaN"),
        (vector({"metric": {}, "value": [1, "+Inf"]}), 0.5, "it is +Inf"),
        (answer("scalar", [1, "7"]), 7, None),
        (answer("scalar", [1, "7"]), None, "it is 7"),
        (answer("string", [1, "x"]), None, "not answer as Prometheus"),
        (b"<html>", None, "not answer as Prometheus"),
        (b"", None, "not answer as Prometheus"),
        (b"[" * 100_000, None, "not answer as Prometheus"),
        (b'{"status": "error", "error": "bad\\u001b query"}', None, "bad  query"),
    ],
)
def test_what_an_answer_means(content, above, says):
    why = prometheus.said(Query("http://h", "up", above), content)
    assert why is None if says is None else says in why


def test_what_cannot_be_asked_speaks_against_it():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    why = prometheus.against(Query(f"http://127.0.0.1:{port}", "up"))
    assert why.startswith("Prometheus at 127.0.0.1 cannot be asked")
    with serving(503, b"starting") as (url, _):
        assert "it answers 503" in prometheus.against(Query(url, "up"))
    with serving(400, b'{"status": "error", "error": "parse error"}') as (url, _):
        assert "parse error" in prometheus.against(Query(url, "up{"))
    with serving(200, b" " * (2 << 20)) as (url, _):
        assert "too long" in prometheus.against(Query(url, "up"))


@pytest.mark.parametrize(
    ("url", "query"), [("ftp://h", "up"), ("http://", "up"), ("http://h", " ")]
)
def test_what_asks_nothing(url, query):
    with pytest.raises(ValueError, match=r"use http|asks nothing"):
        Query(url, query)
