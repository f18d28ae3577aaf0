"""`make demo-apache`: a web server moves from host to host while its clients go on.

Browsers keep their connections and ask for a page again and again, others download a big file.
"""

import os
import sys
from pathlib import Path

from examples import moving
from examples.apache import load
from examples.clients import Clients

HERE = Path(__file__).parent
ADDRESS = "10.98.0.20"
BIG = 30_000_000
RATE = 2e6
PAUSE_S = 0.1
# So that a closed connection is always a failure. After a pause all clients ask at once, and a
# process of the event MPM with fewer threads than that closes connections that have nothing to say.
PATIENT = """
KeepAliveTimeout 300
MaxKeepAliveRequests 0
Timeout 300
ThreadLimit {threads}
ThreadsPerChild {threads}
MaxRequestWorkers {all_threads}
"""


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = moving.parser("examples.apache.demo", __doc__ or "")
    parser.add_argument(
        "--browsers", type=int, default=50, metavar="N", help="connections kept alive (50)"
    )
    parser.add_argument(
        "--downloads", type=int, default=5, metavar="N", help=f"downloads of {BIG} bytes (5)"
    )
    options = parser.parse_args()
    content = os.urandom(BIG)
    page = (HERE / "www/index.html").read_bytes()
    number = options.browsers + options.downloads

    def prepare(root: Path) -> None:
        with (root / "etc/apache2/apache2.conf").open("a") as file:
            file.write(PATIENT.format(threads=number, all_threads=3 * number))
        (root / "var/www/html/big").write_bytes(content)

    def connect(clients: Clients) -> None:
        for _ in range(options.browsers):
            load.browse(clients, ADDRESS, page, PAUSE_S)
        for _ in range(options.downloads):
            load.download(clients, ADDRESS, content, RATE)

    service = moving.Service("apache", "/usr/sbin/apache2", prepare, connect, number)
    title = "AutoPod: a web server moves between two hosts, and its clients go on."
    return moving.main(title, service, options.moves)


if __name__ == "__main__":
    sys.exit(main())
