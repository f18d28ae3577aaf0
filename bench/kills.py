"""Kill a stackfs daemon again and again under a mixed load: `python -m bench.kills [--kills N]`.

Programs that check themselves (tests/kernel/stackfs/load.py; --fsx names one more, xfstests' fsx)
work in a pod's root while its daemon is killed at random moments. At the end every program must
have gone on to the end, and what is on disk, mounted anew, must be what was seen before.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples import apart

LOAD = Path(__file__).parent.parent / "tests/kernel/stackfs/load.py"
KINDS = ["names", "contents", "database", "unlinked", "listings", "program", "repository"]
STACKFS = os.fspath(Path(sys.executable).with_name("stackfs"))


def stackfs(*arguments):
    done = subprocess.run([STACKFS, *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def daemon():
    return json.loads(stackfs("list", "--json"))[0]["pid"]


def fingerprint(top):
    """Digest of everything in a tree: names, types, modes, sizes, inode numbers, contents."""
    total = hashlib.sha256()
    for directory, names, files in os.walk(top):
        names.sort()
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            at = os.lstat(path)
            size = 0 if os.path.isdir(path) else at.st_size
            total.update(repr((path, at.st_mode, size, at.st_ino)).encode())
            if os.path.isfile(path) and not os.path.islink(path):
                total.update(Path(path).read_bytes())
    return total.hexdigest()


def begin(root, base, fsx):
    """Start the programs, each with a directory of its own."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = {}
    for kind in KINDS:
        top, mirror = root / kind, base / f"mirror-{kind}"
        for at in (top, mirror):
            at.mkdir()
        argv = [sys.executable, LOAD, kind, top, mirror]
        running[kind] = subprocess.Popen(argv, text=True, **pipes)
    for seed in range(1, 3) if fsx else ():
        argv = [fsx, "-q", "-N", "1000000", "-S", str(seed), root / f"fsx{seed}"]
        running[f"fsx {seed}"] = subprocess.Popen(argv, text=True, cwd=base, **pipes)
    return running


def end(running):
    """Stop the programs; return what each one says that went wrong."""
    wrong = {}
    for name, process in running.items():
        if not name.startswith("fsx"):
            process.stdin.write("\n")
            process.stdin.flush()
    for name, process in running.items():
        by_us = name.startswith("fsx") and process.poll() is None
        if by_us:
            process.terminate()
        output, errors = process.communicate(timeout=300)
        if process.returncode and not by_us:
            wrong[name] = output + errors
        else:
            print(f"{name:12} {output.strip() or 'went on to the end'}", flush=True)
    return wrong


def kill_repeatedly(running, count, rng):
    """Kill, and note how long the longest pause was, as a stat of the root sees it."""
    root = Path(os.environ["AUTOPOD_PREFIX"]) / "autopod/pod/root"
    longest = 0.0
    for number in range(count):
        time.sleep(rng.uniform(0.02, 0.4))
        os.kill(daemon(), 9)
        begun = time.monotonic()
        os.statvfs(root)
        longest = max(longest, time.monotonic() - begun)
        ended = [name for name, process in running.items() if process.poll() is not None]
        if ended:
            print(f"after kill {number + 1}: {', '.join(ended)} ended")
            break
        if (number + 1) % 50 == 0:
            print(f"{number + 1} kills", flush=True)
    print(f"longest pause {longest * 1000:.0f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fsx", help="path of xfstests' fsx")
    asked = parser.parse_args()
    apart.leave_host()
    with tempfile.TemporaryDirectory(prefix="autopod-") as base:
        os.environ["AUTOPOD_PREFIX"] = base
        (Path(base) / "lower").mkdir()
        stackfs("mount", "pod", "--lower", f"{base}/lower")
        root = Path(base) / "autopod/pod/root"
        running = begin(root, Path(base), asked.fsx)
        try:
            kill_repeatedly(running, asked.kills, random.Random(asked.seed))
        finally:
            wrong = end(running)
        before = fingerprint(root)
        stackfs("umount", "pod")
        stackfs("mount", "pod")
        same = fingerprint(root) == before
        stackfs("umount", "pod")
        log = (Path(base) / "run/autopod/pod/stackfs.log").read_text()
    for name, text in wrong.items():
        print(f"--- {name}\n{text}")
    faults = [line for line in log.splitlines() if " ERROR " in line]
    print("\n".join(faults))
    print(
        f"{len(wrong)} programs failed, {len(faults)} errors logged, "
        f"contents {'identical' if same else 'DIFFERENT'} when mounted anew"
    )
    return 1 if wrong or faults or not same else 0


if __name__ == "__main__":
    sys.exit(main())
