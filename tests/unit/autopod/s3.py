"""An S3 server (moto's) in a process of its own, and what stands before it and breaks off.

python s3.py     prints its port; ends with its standard input
"""

import http.client
import os
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "not-to-be-told"
ANYBODY = (
    "AWS4-HMAC-SHA256 Credential=X/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


@contextmanager
def serving():
    """Have a server with the bucket `pods`; its port."""
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
    ) as server:
        try:
            port = int(server.stdout.readline())
            ask(port, "PUT", "/pods")
            yield port
        finally:
            server.stdin.close()


def ask(port, method, path, body=None):
    """Ask the server something; it minds who that is only if it was told to."""
    url = f"http://127.0.0.1:{port}{path}"
    headers = {"Content-Type": "application/octet-stream", "Authorization": ANYBODY}
    request = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@contextmanager
def breaking_off(port, at):
    """Stand before a server, and answer no request whose path has *at* in it; the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if at in self.path:
                self.close_connection = True
                return
            there = http.client.HTTPConnection("127.0.0.1", port)
            try:
                there.request(self.command, self.path, body, dict(self.headers))
                answer = there.getresponse()
                content = answer.read()
            finally:
                there.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    print(moto.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    os._exit(0)
