"""What `launcher`, `ckpt` and `autopod` have in common: arguments, errors, exit statuses."""

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from launcher import light  # noqa: F401 (first: it makes the others cheaper)
from launcher.places import Places, check_pod_name

OUTPUT: Final = "standard output"
_PACKAGES = ("autopod", "ckpt", "launcher")


class Parser(argparse.ArgumentParser):
    """A parser whose errors have the form of all errors. Its subcommands' are of the same kind."""

    def error(self, message: str) -> NoReturn:  # type: ignore[explicit-override]
        """Print *message* and exit with status 2."""
        tool, _, verb = self.prog.partition(" ")
        print_error(tool, message, f"{tool} {verb} --help".replace("  ", " "))
        sys.exit(2)


def pod(name: str) -> str:
    """Return *name* if it can name a pod: a `type` for arguments."""
    try:
        return check_pod_name(name)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def add_tcp(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what becomes of open TCP connections."""
    parser.add_argument(
        "--tcp",
        choices=("keep", "close", "listen-only"),
        help="open TCP connections: they go on, are ended, or forgotten (default: as configured)",
    )


def add_recipient(parser: argparse.ArgumentParser) -> None:
    """Add the option that says whom an archive is encrypted to."""
    parser.add_argument(
        "--recipient",
        metavar="KEY",
        type=Path,
        action="append",
        default=[],
        help="encrypt it to this public key, too, a PEM file (see ckpt recipient --help)",
    )


def add_since(parser: argparse.ArgumentParser, *, new: bool = False) -> None:
    """Add the option that names an earlier archive: for a *new* archive to build upon, or not."""
    parser.add_argument(
        "--since",
        metavar="FILE",
        type=Path,
        help="an earlier, whole archive of the pod: what is in that is not written again, and who "
        "restarts needs both"
        if new
        else "the archive that it builds upon, if it does (default: found beside it)",
    )


def add_lazy(parser: argparse.ArgumentParser) -> None:
    """Add the options that let memory follow a pod that runs already."""
    parser.add_argument(
        "--lazy",
        action="store_true",
        help="let it run before all of its memory is there",
    )
    parser.add_argument(
        "--lazy-rate",
        metavar="MIB",
        type=_rate,
        action=_LazyRate,
        help="--lazy, and MiB a second of what no program waits for",
    )


class _LazyRate(argparse.Action):
    """An option that would be nothing without another, and so means that, too."""

    def __call__(  # type: ignore[explicit-override]
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Set both."""
        namespace.lazy, namespace.lazy_rate = True, values


def _rate(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 10**6):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of MiB a second")
    return int(text)


def add_identity(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what an archive is decrypted with."""
    parser.add_argument(
        "--identity",
        metavar="KEY",
        type=Path,
        help="private key of a recipient of an encrypted archive (default: the host's)",
    )


def run(tool: str, arguments: argparse.Namespace, failed: int = 1) -> int:
    """Call `arguments.run(places, arguments)`; return the exit status, *failed* after an error.

    An error is printed as `TOOL: error: …` and, where more is known, `TOOL: hint: …`; with
    `arguments.debug` it is raised.
    """
    _open_closed_streams()
    _prepare_output()
    try:
        status: int = arguments.run(Places.from_environment(), arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except Exception as e:
        if arguments.debug and not isinstance(e, BrokenPipeError):
            raise
        return settle(tool, e, failed)
    return status


def settle(tool: str, error: Exception, failed: int) -> int:
    """Print *error*; return the exit status, in general *failed*."""
    if isinstance(error, BrokenPipeError):  # our reader has gone; nothing more can be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    complain(tool, error)
    return failed


def _open_closed_streams() -> None:
    """Make sure that standard streams are there, and no descriptor of ours gets their numbers."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number, which is *fd*
        if getattr(sys, name) is None:
            mode = "w" if fd else "r"
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 (till the end)


def _prepare_output() -> None:
    """Have an error of standard output name it, so that nobody looks for it elsewhere.

    What its encoding lacks is no error: a pod's programs choose their names.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")

    def named(call: Callable[..., int | None]) -> Callable[..., int | None]:
        def called(*arguments: str) -> int | None:
            try:
                return call(*arguments)
            except OSError as e:
                e.filename = OUTPUT
                raise

        return called

    for name in ("write", "flush"):
        setattr(sys.stdout, name, named(getattr(sys.stdout, name)))


def be(main: Callable[[], int]) -> NoReturn:
    """Be the command *main*; Ctrl-C before it has begun, too, is no error to tell."""
    try:
        leave(main())
    except KeyboardInterrupt:
        leave(130)


def leave(status: int) -> NoReturn:
    """End the process without taking the interpreter apart, which takes 30 ms and changes nothing.

    Nothing of ours is to be done at exit: contexts have ended, output is flushed here.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it; closed
            stream.flush()
    os._exit(status)


def complain(tool: str, error: Exception) -> None:
    """Print *error* for a person."""
    for message, hint in findings(tool, error):
        print_error(tool, message, hint)


def findings(tool: str, error: Exception) -> list[tuple[str, str]]:
    """Return *error* in words: pairs of message and hint. One with `findings` brings its own."""
    own = getattr(error, "findings", ())
    if own:
        return list(own)
    if isinstance(error, OSError) and error.strerror:
        return [system_call(error)]
    if isinstance(error, ValueError) or type(error).__module__.startswith(_PACKAGES):
        return [(str(error), getattr(error, "hint", ""))]
    message = f"internal error: {type(error).__name__}: {error}"
    return [(message, f"please report it with what `{tool} --debug …` prints")]


def system_call(error: OSError) -> tuple[str, str]:
    """Return *error* in words, and what may help, or ""; of a full disk, which one that is."""
    where, hint = os.fsdecode(error.filename or ""), ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and where != OUTPUT:
        where = where or os.fspath(Places.from_environment().states())
        hint = f"make room there: df {where if os.path.isdir(where) else os.path.dirname(where)}"
    elif isinstance(error, PermissionError) and os.geteuid() and where != OUTPUT:
        hint = "pods are root's to work on"
    return f"{error.strerror}{f': {where}' if where else ''}", hint


def print_error(tool: str, message: str, hint: str = "") -> None:
    """Print the line *message*, and *hint* if there is one, to standard error."""
    sys.stderr.write(f"{tool}: error: {printable(message)}\n")
    if hint:
        sys.stderr.write(f"{tool}: hint: {printable(hint)}\n")


def printable(text: str) -> str:
    """Return *text* with what could command a terminal as escapes: names are the pod's choice."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
