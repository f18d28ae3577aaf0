"""The standard streams of a command, and what people are shown there.

launcher/commandline.py does the same for the other commands: stackfs and launcher import nothing of
each other, so that either can be replaced.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import Final

OUTPUT: Final = "standard output"


def open_closed() -> None:
    """Make sure that standard streams are there, and no descriptor of ours gets their numbers."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number, which is *fd*
        if getattr(sys, name) is None:
            mode = "w" if fd else "r"
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 (till the end)


def prepare_output() -> None:
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


def printable(text: str) -> str:
    """Return *text* with what could command a terminal as escapes: names are the pod's choice."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
