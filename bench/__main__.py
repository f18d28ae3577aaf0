"""`make bench`: measure, print the tables, keep them in build/results.md."""

import argparse
import os
import platform
import sys
from datetime import date
from pathlib import Path

from bench import calls, checkpoints, files, peers, starts, web
from bench.host import host
from bench.measure import RUNS, aligned, table

ROUNDS = 3
RESULTS = Path(__file__).parent.parent / "build/results.md"


def main() -> int:
    """Run every measurement, or with `files` that of file systems; return the exit status."""
    if len(sys.argv) > 1:
        return only_files(sys.argv[1:])
    with host() as here:
        say("root trees")
        debian = here.build("from examples import roots; print(roots.debian())")
        exim = here.build("from examples.exim import build; print(build.build())")
        say("checkpoint and restart")
        parts = [heading(), checkpoint_table(checkpoints.measure(here, exim, debian))]
        say("starts")
        rows = starts.measure(here, debian)
        parts.append(section("Starts", "", ("ms", "", "goal", ""), rows))
        say("starts beside crun, runc, bubblewrap, systemd-nspawn")
        parts.append(f"## Starts beside others\n\n{aligned(peers.measure(here, debian))}")
        say("a web server")
        apache = here.build("from examples.apache import build; print(build.build())")
        parts.append(f"## A web server\n\n{aligned(web.measure(here, apache))}")
        say("system calls")
        rows = calls.measure(here, debian)
        parts.append(section("System calls", "", ("in a pod", "", "goal", "outside"), rows))
        parts.append(file_systems(here, debian, ROUNDS))
    text = "\n".join(parts)
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    say(f"kept in {RESULTS}")
    return 0


def only_files(argv: list[str]) -> int:
    """Compare file systems: in many rounds, and on one processor where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("files", choices=["files"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pin", type=int, metavar="CPU", help="everything on this processor")
    args = parser.parse_args(argv)
    if args.pin is not None:
        os.nice(-15)  # so that what else runs there does not come between
        os.sched_setaffinity(0, {args.pin})
    with host() as here:
        debian = here.build("from examples import roots; print(roots.debian())")
        print(file_systems(here, debian, args.rounds))
    return 0


def file_systems(here, debian: Path, rounds: int) -> str:
    say("files")
    caption = (
        f"Medians of {rounds} rounds in ms, and their ratio to a plain directory's. One ext4 on a "
        "loop device; lower layer: a Debian; working directory in the root, as in a pod."
    )
    text = aligned(files.table(files.measure(here, debian, rounds)))
    return f"## File systems\n\n{caption}\n\n{text}"


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
