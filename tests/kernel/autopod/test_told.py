"""Notices reach receivers that are really there, also after a kill and when they come late."""

import contextlib
import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading

import pytest

from autopod.status import notices, outbox, policy, senders, store
from autopod.status.receivers import Command, Webhook
from examples.exim.mail import wait_until
from tests.kernel.autopod.visitor import free_port

pytestmark = pytest.mark.needs("root")


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((dict(self.headers), body))
        self.send_response(self.server.answer)
        if self.server.answer == 307:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_):
        pass


def webhook(port=0, answer=200):
    server = http.server.HTTPServer(("127.0.0.1", port), _Hook)
    server.got, server.answer = [], answer
    return serving(server)


class _Smtp(socketserver.StreamRequestHandler):
    """RFC 5321, as much as it takes; `refuse` is an address that it does not know."""

    def handle(self):
        self._say("220 test")
        while line := self.rfile.readline().decode().strip():
            verb = line.split(":")[0].upper()
            if verb == "RCPT TO" and "refuse" in line:
                self._say("550 nobody")
            elif verb == "DATA":
                self._say("354 go on")
                mail = iter(self.rfile.readline, b".\r\n")
                self.server.got.append(b"".join(mail).decode())
                self._say("250 taken")
            else:
                self._say("221 bye" if verb == "QUIT" else "250 yes")
            if verb == "QUIT":
                return

    def _say(self, text):
        self.wfile.write(f"{text}\r\n".encode())


def mailserver():
    server = socketserver.TCPServer(("127.0.0.1", 0), _Smtp)
    server.got = []
    return serving(server)


def configure(places, *receivers):
    file = places.keys().parent / "autopod.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"[[notify]]\n{one}\n" for one in receivers))


def hook(server_or_port):
    port = getattr(server_or_port, "server_port", server_or_port)
    return f'by = "webhook"\nurl = "http://127.0.0.1:{port}/in"\nheaders = {{ X-Key = "k" }}'


@contextlib.contextmanager
def teller():
    """The process beside the service; it ends as it does when the service has been killed."""
    argv = [sys.executable, "-m", "autopod.status.notices"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        yield process
        process.stdin.close()
        assert process.wait(60) in (0, -signal.SIGKILL)


def known(places):
    """Does the process know its receivers? What happens from then on is told."""
    with store.opened(places) as history:
        return not outbox.is_behind(history, notices.named(policy.load(places).notify))


def waiting(places):
    with store.opened(places) as history:
        return outbox.waiting(history)


def happen(places, *texts):
    with store.opened(places) as history:
        for text in texts:
            history.add_event("alert", text)


def let_time_pass(places):
    with store.opened(places) as history, history.db:
        history.db.execute("UPDATE notice SET due = 0")


def test_all_are_told_in_their_ways(host, places, prefix):
    script = prefix / "script"
    script.write_text(
        f'#!/bin/sh\ncat >>{prefix}/told\necho >>{prefix}/told\n[ -z "$(cat {prefix}/no)" ]\n'
    )
    script.chmod(0o755)
    sendmail = prefix / "sendmail"
    sendmail.write_text(f"#!/bin/sh\ncat >{prefix}/mail.new\nmv {prefix}/mail.new {prefix}/mail\n")
    sendmail.chmod(0o755)
    with webhook() as web, mailserver() as mail:
        configure(
            places,
            hook(web),
            f'by = "mail"\nto = ["ops@example.org"]\nsmtp = "127.0.0.1:{mail.server_address[1]}"',
            f'by = "mail"\nto = ["root"]\nprogram = ["{sendmail}"]',
            f'by = "command"\nrun = ["{script}"]',
        )
        said = host.run("autopod", "notify", "--test")
        assert said.count("was told\n") == 4
        (prefix / "told").unlink()
        with teller():
            wait_until(lambda: known(places), "the process is there")
            happen(places, "disk-full: /: 97 %", "disk-full: /: 97 %")
            wait_until(lambda: known(places) and not waiting(places), "all are told")
    assert [body["subject"] for _, body in web.got] == ["a trial", "alert: disk-full"]
    headers, body = web.got[1]
    assert (headers["X-Key"], headers["Content-Type"]) == ("k", "application/json")
    assert headers["Idempotency-Key"].endswith(f"-{body['event']}")
    assert body["text"] == "disk-full: /: 97 %"
    assert len(mail.got) == 2
    assert "To: ops@example.org\r\n" in mail.got[1]
    assert "alert: disk-full" in mail.got[1]
    assert "To: root\n" in (prefix / "mail").read_text()
    [line] = (prefix / "told").read_text().splitlines()
    assert json.loads(line)["text"] == "disk-full: /: 97 %"


def test_who_comes_late_is_told_all_in_order_and_once(host, places):
    port = free_port()
    configure(places, hook(port))
    with teller() as process:
        wait_until(lambda: known(places), "the process is there")
        happen(places, "a: 1", "b: 2")
        wait_until(lambda: any(one.failed for one in waiting(places)), "it was tried")
        process.kill()
    assert [one.tries for one in waiting(places)] == [1, 0]
    assert "refused" in waiting(places)[0].failed
    shown = host.run("autopod", "notify")
    assert "webhook 127.0.0.1: 2 waiting" in shown
    happen(places, "c: 3")  # while nobody is there to tell
    with webhook(port) as web, teller():
        let_time_pass(places)
        wait_until(lambda: known(places) and not waiting(places), "all is told")
    assert [body["text"] for _, body in web.got] == ["a: 1", "b: 2", "c: 3"]


@pytest.mark.parametrize(("answer", "says"), [(500, "500"), (307, "307"), (404, "404")])
def test_an_answer_that_is_no_yes(answer, says):
    with webhook(answer=answer) as web:
        receiver = Webhook(f"http://127.0.0.1:{web.server_port}/")
        with pytest.raises(senders.NotTold, match=says):
            senders.tell(receiver, "alpha", trial())
    assert len(web.got) == 1, "it follows nobody elsewhere"


def test_who_does_not_answer_is_left(monkeypatch):
    monkeypatch.setattr(senders, "_PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        receiver = Webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(senders.NotTold, match=r"tim|too long"):
            senders.tell(receiver, "alpha", trial())
    forever = Command(["/bin/sh", "-c", "sleep 600 & wait"])
    with pytest.raises(senders.NotTold, match="too long"):
        senders.tell(forever, "alpha", trial())


def trial():
    return outbox.Notice(0, "2026-11-27T10:00:00+00:00", "test", "x")


def test_one_that_fails_does_not_keep_others_from_being_told(host, places, prefix):
    with mailserver() as mail:
        port = mail.server_address[1]
        configure(
            places,
            f'by = "mail"\nto = ["refuse@example.org"]\nsmtp = "127.0.0.1:{port}"',
            f'by = "mail"\nto = ["ops@example.org"]\nsmtp = "127.0.0.1:{port}"',
            f'by = "command"\nrun = ["{prefix}/missing"]',
        )
        said = host.run("autopod", "notify", "--test", expect=1)
    assert "mail ops@example.org: was told" in said
    assert "mail refuse@example.org: was not told" in said
    assert "missing: was not told: " in said
    assert os.listdir(prefix / "etc/autopod") == ["autopod.toml"]
