"""`make test-kernels`: pods go from one kernel to another.

Each journey is a list of kernels, as 6.1-6.18-6.1. The pods are made under the first, checkpointed,
restarted and checkpointed again under each further one, and check themselves under the last. What
came of each workload is printed as a table; the exit status is 1 if one failed.

With --tests, these tests are run under each of the kernels instead.

The kernels are those of a lab of virtual machines (tests/kernels/lab.py says what it must do),
whose program --lab or the environment variable AUTOPOD_LAB names.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from examples.exim import build as exim_build
from examples.roots import BuildError
from tests.kernel.ckpt import harness
from tests.kernels import exim, root
from tests.kernels.lab import Lab, LabError
from tests.kernels.outcome import Outcome, count, journeys, merge, table

HERE = Path(__file__).parent
DEFAULT = "6.1-6.18 6.18-6.1"
AT_ONCE = 2
_TEST_S, _WAIT_S = 1800, 600
"""What a test, and what it waits for, may take where the processor is emulated."""
HOME = frozenset({"mappings.c"})
"""What compares more than another kernel can keep: its memory map to the letter."""


def main() -> int:
    """Make the journeys; return the exit status."""
    options = _parser().parse_args()
    names = options.workloads or [*(n for n in harness.names() if n not in HOME), exim.NAME]
    try:
        program = lab_program(options.lab)
        routes = journeys(options.journeys)
        trees = [root.build(), exim_build.build()]
        share = Path(tempfile.mkdtemp(prefix="autopod-kernels-", dir="/var/tmp"))
    except (LabError, ValueError, BuildError, OSError) as e:
        print(f"test-kernels: error: {e}", file=sys.stderr)
        return 2
    lab = Lab(program, share)
    try:
        if options.tests:
            kernels = sorted({kernel for route in routes for kernel in route})
            return max(_test(lab, kernel, options.tests) for kernel in kernels)
        _compile(names, share / "programs")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            taken = pool.map(lambda route: _travel(lab, share, route, trees, names), routes)
            rows = dict(zip(map("-".join, routes), taken, strict=True))
    finally:
        lab.stop()
        shutil.rmtree(share)
    columns = list(rows)
    by_name = {name: {column: rows[column][name] for column in columns} for name in names}
    print("\n".join(table(by_name, columns)))
    return 1 if count(by_name, columns)["failed"] else 0


def _test(lab: Lab, kernel: str, tests: list[str]) -> int:
    """Run *tests* under *kernel*; return the exit status."""
    patience = ["-o", f"faulthandler_timeout={_TEST_S}"]
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *patience]
    try:
        print(lab.run(kernel, ["env", f"TEST_DEADLINE_S={_WAIT_S}", *pytest, *tests], 3600), end="")
    except LabError as e:
        print(f"under {kernel}: {e}", file=sys.stderr)
        return 1
    return 0


def _travel(
    lab: Lab, share: Path, route: list[str], trees: list[Path], names: list[str]
) -> dict[str, Outcome]:
    """Make one journey; return the outcomes by workload."""
    journey = "-".join(route)
    trip = share / journey
    trip.mkdir()
    (trip / "programs").symlink_to(share / "programs")
    found: dict[str, Outcome] = {}
    going = names
    for leg, kernel in enumerate(route):
        print(f"{journey}: {len(going)} workloads under {kernel}", flush=True)
        argv = [sys.executable, "-m", "tests.kernels.guest", trip, leg, len(route) - 1, *trees]
        try:
            said = lab.run(kernel, [*argv, *going], 120 * (10 + len(going)))
        except LabError as e:
            return found | {name: Outcome(name, "failed", f"under {kernel}: {e}") for name in going}
        for line in said.splitlines():
            outcome = msgspec.json.decode(line, type=Outcome)
            found[outcome.name] = merge(found.get(outcome.name), outcome, kernel)
        going = [name for name in going if found[name].result == "ok"]
        if not going:
            break
    return found


def _compile(names: list[str], target: Path) -> None:
    target.mkdir()
    sources = [harness.WORKLOADS / name for name in names if name.endswith(".c")]
    for source in [*sources, HERE / "to_file.c"]:
        argv = ["cc", "-static", "-pthread", "-O1", "-o", target / source.stem, source]
        subprocess.run(argv, check=True)


def lab_program(path: str | None) -> Path:
    """Return the lab's program.

    Raises:
        LabError: there is none.
    """
    if not path:
        raise LabError("no lab: name its program, by --lab or AUTOPOD_LAB (tests/kernels/lab.py)")
    if not os.access(path, os.X_OK):
        raise LabError(f"no lab: {path} is no program")
    return Path(path).resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="test-kernels", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--lab", metavar="PROGRAM", default=os.environ.get("AUTOPOD_LAB"))
    parser.add_argument(
        "--journeys",
        metavar="LIST",
        default=DEFAULT,
        help="kernels in their order, journeys apart by blanks (default: %(default)s)",
    )
    parser.add_argument(
        "--tests", metavar="PATH", nargs="+", help="run these tests under each kernel, no workloads"
    )
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        help=f"of tests/workloads, and {exim.NAME} (default: all)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
