"""How long a snapshot stops those who write, with much in the upper directory."""

import json
import os
import shutil
import statistics
import subprocess
import sys

from bench.host import Host
from bench.measure import RUNS, Row, ms

GIB, FILES = 10, 50_000
WRITER = """
import os, sys, time
os.chdir(sys.argv[1])
longest, number = 0.0, 0
def timed(action, *args):
    global longest
    begin = time.perf_counter()
    result = action(*args)
    longest = max(longest, time.perf_counter() - begin)
    return result
os.set_blocking(0, False)
while True:
    number += 1
    fd = timed(os.open, "new", os.O_CREAT | os.O_WRONLY)
    timed(os.write, fd, b"a line\\n")
    timed(os.close, fd)
    timed(os.rename, "new", f"file{number % 100}")
    try:
        asked = os.read(0, 1)
    except BlockingIOError:
        continue
    if not asked:
        break
    print(longest, flush=True)
    longest = 0.0
"""


def measure(here: Host, low: os.PathLike[str]) -> list[Row]:
    """Seal the upper directory RUNS times beside a writer; return the rows of the table."""
    upper = here.scratch / "snapshots/upper"
    _fill(upper)
    here.run("stackfs", "mount", "s", "--lower", low, "--upper", upper)
    argv = [sys.executable, "-c", WRITER, here.prefix / "autopod/s/root/many"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writer = subprocess.Popen(argv, text=True, bufsize=1, **pipes)
    try:
        _longest(writer)
        quiet, stopped, longest = [], [], []
        for _ in range(RUNS):
            here.run("stackfs", "list")
            quiet.append(_longest(writer))
            said = json.loads(here.run("stackfs", "snapshot", "--json", "s"))
            stopped.append(said["stopped_ms"] / 1000)
            longest.append(_longest(writer))
    finally:
        writer.stdin.close()
        writer.wait()
        here.run("stackfs", "umount", "s")
        shutil.rmtree(upper.parent)
    return [
        Row("no request answered", _exact(stopped), goal="20"),
        Row("longest call of a writer during the command", ms(longest)),
        Row("during another command, without a snapshot", ms(quiet)),
    ]


def _fill(upper) -> None:
    """Put GIB of big files and FILES small ones into it."""
    upper.mkdir(parents=True)
    piece = os.urandom(1 << 20)
    for number in range(GIB):
        with open(upper / f"big{number}", "wb") as file:
            file.writelines(piece for _ in range(1 << 10))
    (upper / "many").mkdir()
    for number in range(FILES):
        (upper / f"many/{number}").write_bytes(b"small")
    subprocess.run(["sync", "-f", upper], check=True)


def _longest(writer) -> float:
    """Return the seconds of the writer's longest call since it was last asked."""
    writer.stdin.write("?")
    writer.stdin.flush()
    return float(writer.stdout.readline())


def _exact(seconds: list[float]) -> str:
    values = [1000 * s for s in seconds]
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"
