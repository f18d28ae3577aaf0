"""Who visits the page: requests by hand, each as hostile as it likes."""

import http.client
import json
import socket
import subprocess
import sys

from autopod.web import auth
from examples.exim.mail import wait_until
from launcher.places import Places


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Page:
    """The page's process, and requests to it."""

    def __init__(self, host):
        self.places, self.host = Places(host.prefix), host
        self.port = free_port()
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def open(self, more=""):
        """Start it; *more*: lines of the table web."""
        policy = self.host.prefix / "etc/autopod/autopod.toml"
        policy.parent.mkdir(parents=True, exist_ok=True)
        before = policy.read_text() if policy.exists() else ""
        policy.write_text(f'{before}\n[web]\nlisten = "127.0.0.1:{self.port}"\n{more}')
        self.start()

    def start(self):
        """Start it with the policy that it had."""
        argv = [sys.executable, "-m", "autopod.web"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE)
        wait_until(self.answers, "the page is served")
        self.tokens = auth.ensure(self.places)

    def close(self):
        """Let it end as it does when the service has been killed."""
        if self.process:
            self.process.stdin.close()
            assert self.process.wait(20) == 0

    def answers(self):
        assert self.process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(self, method, path, body=None, **headers):
        """Return status, headers and body of an answer; `x_y` stands for the header X-Y."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            names.setdefault("content-type", "application/json")
        try:
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def state(self):
        status, _, said = self.ask("GET", "/api/state", authorization=self.bearer())
        assert status == 200
        return json.loads(said)

    def bearer(self, reader=False):
        return f"Bearer {self.tokens.reader if reader else self.tokens.admin}"

    def log_in(self, token=None):
        """Return the headers of a session."""
        status, headers, said = self.ask("POST", "/login", {"token": token or self.tokens.admin})
        assert status == 200
        cookie = headers["set-cookie"].partition(";")[0]
        return {"cookie": cookie, "x_autopod_secret": json.loads(said)["secret"]}

    def act(self, action, **headers):
        status, _, said = self.ask("POST", "/api/act", action, **headers)
        return status, json.loads(said)

    def do(self, action):
        """Let an administrator do it; return its job when it has ended."""
        status, said = self.act(action, authorization=self.bearer())
        assert status == 202, said
        found = []

        def has_ended():
            found[:] = [job for job in self.state()["jobs"] if job["number"] == said["job"]]
            return found[0]["ended"] is not None

        wait_until(has_ended, f"{action} has ended")
        return found[0]
