"""`make bench`: measure, print the tables, keep them in build/results.md.

`make bench BENCH_ARGS=files`, and with snapshots, checkpoints, incremental, follow, moves or fleet
in its place, measures one.
"""

import argparse
import os
import platform
import sys
from datetime import date
from pathlib import Path

from bench import (
    calls,
    checkpoints,
    files,
    fleet,
    follow,
    incremental,
    moves,
    peers,
    picture,
    slow,
    snapshots,
    starts,
    web,
    workloads,
)
from bench.host import host
from bench.measure import RUNS, aligned, table

ROUNDS = 5
WHATS = ("files", "snapshots", "checkpoints", "incremental", "follow", "moves", "fleet")
RESULTS = Path(__file__).parent.parent / "build/results.md"
PICTURE = RESULTS.with_name("files.png")
FLEET_PICTURE = RESULTS.with_name("fleet.png")


def main() -> int:
    """Run every measurement, or the one that is named; return the exit status."""
    if len(sys.argv) > 1:
        return only_one(sys.argv[1:])
    with host() as here:
        say("root trees")
        debian = here.build("from examples import roots; print(roots.debian())")
        say("checkpoint and restart")
        parts = [heading(), checkpoint_table(here), incremental_table(here), follow_table(here)]
        parts.append(move_table(here))
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
        say("snapshots")
        parts.append(snapshot_table(here))
        parts.append(fleet_tables(here, fleet.HOSTS))
        parts.append(file_systems(here, ROUNDS, [None, 1]))
    text = "\n".join(parts)
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    say(f"kept in {RESULTS}")
    return 0


def only_one(argv: list[str]) -> int:
    """Compare file systems, in both ways or one; or measure something else."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("what", choices=list(WHATS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of files and checkpoints")
    parser.add_argument("--pod", default="", help="checkpoints of one program only")
    parser.add_argument(
        "--hosts", type=int, action="append", help="of the fleet; several times for several"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--pin", type=int, metavar="CPU", help="files with all on this processor")
    how.add_argument("--free", action="store_true", help="files with processors as they come")
    args = parser.parse_args(argv)
    cpus = [args.pin] if args.pin is not None else [None] if args.free else [None, 1]
    with host() as here:
        if args.what == "files":
            text = file_systems(here, args.rounds, cpus)
        elif args.what == "checkpoints":
            os.nice(-15)  # so that what else runs comes between less
            text = checkpoint_table(here, args.pod, args.rounds)
        elif args.what == "incremental":
            text = incremental_table(here, args.rounds)
        elif args.what == "follow":
            text = follow_table(here, args.rounds)
        elif args.what == "moves":
            text = move_table(here, args.rounds)
        elif args.what == "fleet":
            text = fleet_tables(here, tuple(args.hosts or fleet.HOSTS))
        else:
            text = snapshot_table(here)
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.with_name(f"{args.what}.md").write_text(text)
    return 0


def follow_table(here, rounds: int = follow.ROUNDS) -> str:
    debian = here.build("from examples import roots; print(roots.debian())")
    caption = f"A program with {follow.MIB} MiB. Times since the command began; medians, in turns."
    rows = follow.measure(here, debian, rounds)
    return f"## Memory that follows\n\n{caption}\n\n{aligned(rows)}"


def move_table(here, rounds: int = moves.MOVES) -> str:
    debian = here.build("from examples import roots; print(roots.debian())")
    caption = (
        f"Medians of {rounds} moves there and back; both hosts and the client on this machine. The "
        "second program rewrites 50 MiB of its memory each second."
    )
    return f"## Migrations\n\n{caption}\n\n{aligned(moves.measure(debian, rounds))}"


def snapshot_table(here) -> str:
    debian = here.build("from examples import roots; print(roots.debian())")
    caption = (
        f"{snapshots.GIB} GiB in big files and {snapshots.FILES:,} small ones in the upper "
        "directory; a program creates, writes and renames small files all the time."
    )
    rows = snapshots.measure(here, debian)
    return section("Snapshots", caption, ("ms", "", "goal", ""), rows)


def fleet_tables(here, sizes: tuple[int, ...]) -> str:
    """Return a table for each store, and draw the picture of them."""
    say("a fleet as it grows")
    found = fleet.measure(here.scratch, sizes, say)
    FLEET_PICTURE.parent.mkdir(exist_ok=True)
    picture.lines(FLEET_PICTURE, fleet.growth(found))
    say(f"picture in {FLEET_PICTURE}")
    text = f"## A fleet as it grows\n\n{fleet.CAPTION}\n\n{fleet.tables(found)}"
    say(f"\n{text}")  # whatever comes after
    late = aligned(slow.measure(here.scratch))
    return f"{text}\n### A store that is slow\n\n{slow.CAPTION}\n\n{late}"


def file_systems(here, rounds: int, cpus: list[int | None]) -> str:
    """Return a table for each of *cpus*, None for all, and draw the picture of them."""
    packages = ", ".join(map(repr, workloads.PACKAGES))
    low = here.build(f"from examples import roots; print(roots.debian(({packages})))")
    os.nice(-15)  # so that what else runs comes between less
    parts, drawn = [], {}
    for cpu in cpus:
        how = "processors as they come" if cpu is None else f"all on processor {cpu}"
        say(f"files, {how}")
        times = files.measure(here, low, rounds, cpu)
        drawn[how] = files.ratios(times)
        lines = aligned(files.table(times))
        say(f"\n{lines}")  # whatever comes after
        parts.append(
            f"## File systems, {how}\n\nMedians of {rounds} rounds in ms, and their ratio to a "
            "plain directory's. One ext4 on a loop device; lower layer: a Debian; working "
            f"directory in the root, as in a pod.\n\n{lines}"
        )
    PICTURE.parent.mkdir(exist_ok=True)
    picture.draw(PICTURE, drawn)
    say(f"picture in {PICTURE}")
    return "\n".join(parts)


def heading() -> str:
    return (
        f"# Measurements of {date.today()}\n\n"
        f"Linux {platform.release()}, {os.cpu_count()} processors. Medians of {RUNS} (least - "
        "greatest), in milliseconds.\n"
    )


def checkpoint_table(here, only: str = "", rounds: int = checkpoints.ROUNDS) -> str:
    trees = {
        name: here.build(f"from examples.{name} import build; print(build.build())")
        for name in ("apache", "exim", "redis")
    }
    trees["debian"] = here.build("from examples import roots; print(roots.debian())")
    caption = (
        f"Medians of {rounds} rounds. Frozen: of a pod that goes on; CRIU: its frozen_time. "
        "Checkpoint: the whole command, after which the program has ended; ours signed, "
        "compressed, with the files, synced; CRIU's as bench/criu.py says. Restart: the whole "
        "command, where the files are; then on a host that has nothing but the archive."
    )
    lines = aligned(checkpoints.measure(here, trees, only, rounds))
    return f"## Checkpoint and restart\n\n{caption}\n\n{lines}"


def incremental_table(here, rounds: int = incremental.ROUNDS) -> str:
    debian = here.build("from examples import roots; print(roots.debian())")
    caption = (
        f"Medians of {rounds} rounds. A pod of Python with {incremental.MIB} MiB of memory and "
        f"{incremental.FILE_MIB} MiB in a file goes on; so much of its memory is rewritten "
        "before each round, at the same places. Total: the whole command. Restart: with all files "
        "from the archives, in place of what is there."
    )
    lines = aligned(incremental.measure(here, debian, rounds))
    return f"## Incremental checkpoints\n\n{caption}\n\n{lines}"


def section(title: str, caption: str, columns: tuple[str, str, str, str], rows) -> str:
    names = ("", columns[0], columns[2], columns[3])
    above = f"{caption}\n\n" if caption else ""
    return f"## {title}\n\n{above}{table(names, rows)}"


def say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
