"""`make bench`: measure, print the tables, keep them in build/results.md."""

import os
import platform
import sys
from datetime import date
from pathlib import Path

from bench import calls, checkpoints, files, starts
from bench.host import host
from bench.measure import RUNS, table

RESULTS = Path(__file__).parent.parent / "build/results.md"


def main() -> int:
    """Run every measurement; return the exit status."""
    with host() as here:
        say("root trees")
        debian = here.build("from examples import roots; print(roots.debian())")
        exim = here.build("from examples.exim import build; print(build.build())")
        say("checkpoint and restart")
        parts = [heading(), checkpoint_table(checkpoints.measure(here, exim, debian))]
        say("starts")
        rows = starts.measure(here, debian)
        parts.append(section("Starts", "", ("ms", "", "goal", ""), rows))
        say("system calls")
        rows = calls.measure(here, debian)
        parts.append(section("System calls", "", ("in a pod", "", "goal", "outside"), rows))
        say("files")
        caption = "Warm caches; lower layer: a full Debian; upper on the same disk."
        columns = ("stackfs, ms", "", "ratio", "plain directory, ms")
        parts.append(section("stackfs", caption, columns, files.measure(here, debian)))
    text = "\n".join(parts)
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    say(f"kept in {RESULTS}")
    return 0


def heading() -> str:
    return (
        f"# Measurements of {date.today()}\n\n"
        f"Linux {platform.release()}, {os.cpu_count()} processors. Medians of {RUNS} (least - "
        "greatest), in milliseconds.\n"
    )


def checkpoint_table(rows) -> str:
    caption = (
        "Each round: checkpoint, restart on the same host (the pod's files and network identity "
        "are there, as after every checkpoint), checkpoint, everything of the pod wiped out, "
        "restart from the archive alone. The last column is CRIU on the same class of machine, "
        "measured elsewhere: medians of 5, without namespaces, file-system delta, compression, "
        "signature or fsync."
    )
    return section("Checkpoint and restart", caption, ("ms", "", "goal", "CRIU, ms"), rows)


def section(title: str, caption: str, columns: tuple[str, str, str, str], rows) -> str:
    names = ("", columns[0], columns[2], columns[3])
    above = f"{caption}\n\n" if caption else ""
    return f"## {title}\n\n{above}{table(names, rows)}"


def say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
