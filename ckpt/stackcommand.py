"""The command line of stackfs (ARCHITECTURE.md): processes that do not outlive a block.

What takes long is to start them, so each can be begun before it is known what it shall work on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, Final, Self, cast

from launcher.places import Places

_ERROR: Final = "stackfs: error: "
_HINT: Final = "stackfs: hint: "


class StackError(Exception):
    """stackfs could not do what it was asked; the text is its own."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Mounting:
    """A mount that stackfs is ready for, or getting ready for; abandoned at the end of a `with`."""

    def __init__(self, command: "Command", shift: Callable[[], int]) -> None:
        self._command, self._shift = command, shift

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abandon()

    def finish(self, lowers: Sequence[str | Path], upper: Path | None = None) -> None:
        """Mount; returns when the root answers.

        Raises:
            StackError: it could not be mounted.
        """
        spec = {
            "lower": [os.fspath(lower) for lower in lowers],
            "upper": upper,
            "shift": self._shift(),
        }
        with self._command as command:
            stdin = cast(BinaryIO, command.stdin)
            with suppress(BrokenPipeError):  # it has ended, and wait() says why
                stdin.write(json.dumps(spec, default=os.fspath).encode())
                stdin.close()
            command.wait()

    def abandon(self) -> None:
        """Do not mount; after finish() it does nothing."""
        with self._command:
            pass


class Packing:
    """A layer being packed as an OCI layer tar, which is read within a `with` block, to its end."""

    def __init__(self, places: Places) -> None:
        """Get ready; begin() says for what."""
        pipe = subprocess.PIPE
        self._command = Command(places, "pack", "--redirects", "-", stdin=pipe, stdout=pipe)

    def begin(self, directory: str | Path) -> None:
        """Pack the layer *directory*."""
        self._command.name_directory(directory)

    def __enter__(self) -> BinaryIO:
        return cast(BinaryIO, self._command.stdout)

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """End it.

        Raises:
            StackError: the tar that was read is not whole.
        """
        with self._command as command:
            if kind is None:
                command.wait()

    def abandon(self) -> None:
        """Do not pack; after the block it does nothing."""
        with self._command:
            pass


class Unpacking:
    """A layer to be made from an OCI layer tar. A context manager, which abandons it at its end."""

    def __init__(self, places: Places) -> None:
        """Get ready; into() says for what."""
        self._command = Command(places, "unpack", "-", stdin=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._command:
            pass

    @contextmanager
    def into(self, directory: str | Path) -> Iterator[BinaryIO]:
        """Within the block, take the tar that the new layer *directory* is made from.

        Raises:
            StackError: the tar is refused. Nothing is left then.
        """
        stdin = cast(BinaryIO, self._command.stdin)
        with self._command as command:
            command.name_directory(directory)
            try:
                yield stdin
                stdin.close()
            except BrokenPipeError:
                command.wait()  # says why it does not want more
                raise
            command.wait()


class Identity:
    """The identity of a directory, being computed by stackfs."""

    def __init__(self, places: Places, directory: str | Path) -> None:
        self._command = Command(places, "identity", os.fspath(directory), stdout=subprocess.PIPE)

    def result(self) -> str:
        """Return the identity, 64 hexadecimal digits.

        Raises:
            StackError: it could not be computed.
        """
        with self._command as command:
            text = cast(BinaryIO, command.stdout).read()
            command.wait()
        return text.decode().strip()

    def abandon(self) -> None:
        """Do not wait for it."""
        with self._command:
            pass


class Command:
    """A running stackfs command. As a context manager it does not outlive its block.

    Its standard error goes to a file in memory: the daemon that `mount` leaves behind could keep a
    pipe open for good.
    """

    def __init__(
        self,
        places: Places,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> None:
        program = Path(sys.executable).with_name("stackfs")
        self._name = arguments[0]
        self._stderr: IO[bytes] = os.fdopen(os.memfd_create("stackfs-stderr"), "w+b")
        self._process = subprocess.Popen(
            [program, *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=self._stderr,
            env={**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)},
            pass_fds=pass_fds,
        )
        self.stdin, self.stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        for pipe in (self.stdin, self.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what is still in its buffer has no reader now
                    pipe.close()
        self._process.wait()
        self._stderr.close()

    def name_directory(self, directory: str | Path) -> None:
        """Name the directory to a command that was begun without; see stackfs.cli."""
        stdin = cast(BinaryIO, self.stdin)
        with suppress(BrokenPipeError):  # it has ended, and wait() says why
            stdin.write(json.dumps(os.fspath(directory)).encode() + b"\n")
            stdin.flush()

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            StackError: it failed.
        """
        status = self._process.wait()
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace")
        if status:
            raise _error(text, f"`stackfs {self._name}` ended with status {status}")


def _error(text: str, otherwise: str) -> StackError:
    """Return what stackfs wrote to standard error as an exception."""
    lines = text.splitlines()
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    hints = [line.removeprefix(_HINT) for line in lines if line.startswith(_HINT)]
    message = errors or lines[-1:] or [otherwise]
    return StackError(message[0], hints[0] if hints else "")
