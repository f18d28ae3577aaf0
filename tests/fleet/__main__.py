"""`make test-fleet`: a security update rolls through three hosts; then things are killed at random.

The hosts are namespaces on this machine, with a cluster of etcd. The exit status is 0 only if
everything held.
"""

import argparse
import os
import sys
import time
from functools import partial

from examples import apart
from examples.roots import in_network
from examples.transcript import status
from tests.fleet.rounds import Rounds
from tests.fleet.update import PROGRAMS, Update


def main() -> int:
    """Run it; return the exit status."""
    return status("test-fleet", partial(_run, _parser().parse_args()))


def _run(options: argparse.Namespace) -> None:
    outside = apart.leave_host()
    try:
        bases = {pod: in_network(outside, f"examples.{pod}.build") for pod in PROGRAMS}
        if options.part != 2:
            Update(bases).run()
        if options.part != 1:
            Rounds(bases, options.seed, options.rounds).run()
    finally:
        os.close(outside)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--part", type=int, choices=(1, 2), help="only one of the two")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of part 2 (30)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), metavar="S", help="what is random follows"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
