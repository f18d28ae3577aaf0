"""What a demonstration prints: numbered steps with their times, commands with their output."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from examples.roots import BuildError

WIDTH = 86
INDENT = " " * 4
BIN = Path(sys.executable).parent


class Failed(Exception):  # noqa: N818 (it names an outcome)
    """A check of the demonstration did not hold."""


def status(name: str, run: Callable[[], object], *failures: type[Exception]) -> int:
    """Run a demonstration, say what made it fail, and return the process's exit status.

    SIGTERM ends it as ^C does: what it has made is taken away.

    Args:
        name: of the demonstration.
        run: runs it, and takes away what that has made.
        failures: what else it may raise.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run()
    except (Failed, BuildError, OSError, subprocess.CalledProcessError, *failures) as e:
        print(f"\n{name}: error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    return 0


class Transcript:
    """Writes to standard output; colour only if that is a terminal."""

    def __init__(self, title: str, *, shorten: dict[str, str]) -> None:
        """Begin under *title*; *shorten* maps long paths to what is printed for them."""
        self._shorten = shorten
        self._number = 0
        self._start = time.monotonic()
        self._colour = sys.stdout.isatty()
        print(self._styled("1", title))

    def say(self, text: str) -> None:
        """Print *text*, indented below its step."""
        for path, short in self._shorten.items():
            text = text.replace(path, short)
        for line in text.splitlines():
            print(f"{INDENT}{line}", flush=True)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Number and name what follows, and print the time that it took."""
        self._number += 1
        print("\n" + self._styled("1", f"{self._number:2}  {title}"), flush=True)
        start = time.monotonic()
        yield
        print(self._styled("2", f"{time.monotonic() - start:.2f} s".rjust(WIDTH)), flush=True)

    def run(self, *argv: str | Path, expect: int = 0, prefix: Path | None = None) -> str:
        """Run a command of the project and show it with its output.

        Args:
            argv: program (without its directory) and arguments.
            expect: the exit status that it must have.
            prefix: AUTOPOD_PREFIX for this command, if not the environment's.

        Returns:
            Standard output and standard error together.

        Raises:
            Failed: it ended with another status.
        """
        words = [os.fspath(word) for word in argv]
        self.say(self._styled("36", f"$ {shlex.join(words)}"))
        environment = {**os.environ, **({"AUTOPOD_PREFIX": os.fspath(prefix)} if prefix else {})}
        run = subprocess.run(
            [BIN / words[0], *words[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        self.say(run.stdout)
        if run.returncode != expect:
            raise Failed(f"{shlex.join(words)}: exit status {run.returncode}, expected {expect}")
        return run.stdout

    def check(self, holds: object, claim: str, seen: object = "") -> None:
        """Print *claim* if it *holds*.

        Raises:
            Failed: it does not; the text says what was *seen* instead.
        """
        if not holds:
            raise Failed(f"this does not hold: {claim} {seen}")
        self.say(f"{self._styled('32', '✓')} {claim}")

    def end(self) -> None:
        """Print the whole time."""
        print(f"\nEverything held; {time.monotonic() - self._start:.1f} s in all.")

    def _styled(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text
