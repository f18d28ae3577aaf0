"""A client of the pod's web server that stays connected, on another machine than the pod's.

python -m tests.reboot.client ADDRESS

One connection for ever: it asks for the server's own count of requests, which is in its memory, and
prints for each answer when it was asked, how long it took, and the count. An answer may take as
long as it likes. It ends with its standard input, or with an error when the connection is closed.
"""

import http.client
import re
import select
import sys
import time

PAUSE_S = 5.0
_COUNT = re.compile(rb"^Total Accesses: ([0-9]+)$", re.MULTILINE)


def main() -> int:
    """Ask, again and again."""
    connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
    connection.connect()
    connection.sock.settimeout(None)
    socket = connection.sock
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        began, asked = time.monotonic(), time.time()
        connection.request("GET", "/server-status?auto")
        count = _COUNT.search(connection.getresponse().read())
        if connection.sock is not socket or count is None:
            print("the server closes the connection", file=sys.stderr)
            return 1
        print(f"{asked:.1f} {time.monotonic() - began:.1f} {int(count[1])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
