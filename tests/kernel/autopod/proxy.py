"""A forward proxy for plain HTTP: it listens on an inherited socket, and connects where it lives.

So a pod of a test, whose network ends at the test's own, can fetch packages from the host's. Run as
`proxy.py FD`, with the listening socket as descriptor FD.
"""

import http.client
import http.server
import shutil
import socket
import sys
import time
from urllib.parse import urlsplit


def connect(netloc):
    """Connect to the server; names that cannot be resolved right now are asked for again."""
    upstream = http.client.HTTPConnection(netloc, timeout=60)
    give_up = time.monotonic() + 60
    while upstream.sock is None:
        try:
            upstream.connect()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(1)
    return upstream


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urlsplit(self.path)
        headers = {k: v for k, v in self.headers.items() if not k.startswith(("Proxy-", "Conn"))}
        upstream = connect(url.netloc)
        upstream.request("GET", f"{url.path}?{url.query}".rstrip("?"), headers=headers)
        answer = upstream.getresponse()
        self.send_response(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        shutil.copyfileobj(answer, self.wfile)
        upstream.close()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.serve_forever()
