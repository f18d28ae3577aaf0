"""A place to measure in: private namespaces, a prefix, the commands of the project."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from examples import apart, leftovers

BIN = Path(sys.executable).parent


class Host:
    """An instance of its own below `prefix`; `network` leads out, for fetching packages."""

    def __init__(self, scratch: Path, network: int) -> None:
        self.scratch = scratch
        self.prefix = scratch / "host"
        self.prefix.mkdir()
        self.network = network
        os.environ["AUTOPOD_PREFIX"] = os.fspath(self.prefix)

    def run(self, *argv: str | Path) -> str:
        """Run a command of the project; return what it printed."""
        words = [os.fspath(word) for word in argv]
        run = subprocess.run(
            [BIN / words[0], *words[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(f"{' '.join(words)}: {run.stderr.strip()}")
        return run.stdout

    def build(self, code: str) -> Path:
        """Run *code*, which prints the path of a root tree, in the host's own network."""
        argv = ["nsenter", f"--net=/proc/self/fd/{self.network}", sys.executable, "-c", code]
        run = subprocess.run(
            argv, pass_fds=[self.network], stdout=subprocess.PIPE, text=True, check=True
        )
        return Path(run.stdout.splitlines()[-1])


@contextlib.contextmanager
def host():
    """Leave the host; within the block, an instance; after it, nothing."""
    network = apart.leave_host()
    scratch = Path(tempfile.mkdtemp(prefix="autopod-bench-"))
    try:
        yield Host(scratch, network)
    finally:
        leftovers.remove(scratch / "host")
        shutil.rmtree(scratch)
        os.close(network)
