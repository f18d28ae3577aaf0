"""`make test-fleet`: a security update rolls through three hosts; then things are killed at random.

The hosts are namespaces on this machine, with a cluster of etcd. The exit status is 0 only if
everything held.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from examples import apart
from examples.roots import BuildError, in_network
from examples.transcript import Failed
from tests.fleet.rounds import Rounds
from tests.fleet.update import PROGRAMS, Update


def main() -> int:
    """Run it; return the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = _parser().parse_args()
    outside = apart.leave_host()
    try:
        bases = {pod: in_network(outside, f"examples.{pod}.build") for pod in PROGRAMS}
        if options.part != 2:
            Update(bases).run()
        if options.part != 1:
            Rounds(bases, options.seed, options.rounds).run()
    except (Failed, BuildError, OSError, TimeoutError, subprocess.CalledProcessError) as e:
        print(f"\ntest-fleet: error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntest-fleet: interrupted; cleaning up", file=sys.stderr)
        return 130
    finally:
        os.close(outside)
    return 0


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
