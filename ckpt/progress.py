"""Progress of long steps: bars with throughput for a person, nothing for a program."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import rich.progress

_PATIENCE_SECONDS: Final = 0.3
_REFRESH_SECONDS: Final = 0.1


class Progress(Protocol):
    """Told of steps, and of bytes done in them. Steps do not nest; one thread calls.

    A forked child may call it, too; nothing of that is shown.
    """

    def step(
        self, label: str, total_bytes: int | None = None
    ) -> AbstractContextManager[None, bool | None]:
        """Within the block, advance() counts for the step *label*."""
        ...

    def advance(self, done_bytes: int) -> None:
        """Count *done_bytes* more for the current step; outside of steps do nothing."""
        ...


class Silent:
    """For programs and logs."""

    @contextmanager
    def step(self, label: str, total_bytes: int | None = None) -> Iterator[None]:
        """Say nothing."""
        yield

    def advance(self, done_bytes: int) -> None:
        """Say nothing."""


class Bars:
    """For a terminal on standard error: a bar per step, gone when the step is done.

    A step that is over in a moment shows none, and pays nothing for it. Bars are drawn by whoever
    advances them and not by a thread: a restart forks, and a child would inherit the lock that the
    thread holds at that moment.
    """

    def __init__(self) -> None:
        self._bar: rich.progress.Progress | None = None
        self._step: tuple[str, int | None] | None = None
        self._done = 0
        self._next_draw = 0.0
        self._pid = os.getpid()

    @contextmanager
    def step(self, label: str, total_bytes: int | None = None) -> Iterator[None]:
        """Show a bar while the block runs."""
        self._step, self._done = (label, total_bytes), 0
        self._next_draw = time.monotonic() + _PATIENCE_SECONDS
        try:
            yield
        finally:
            self._step = None
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def advance(self, done_bytes: int) -> None:
        """Move the bar."""
        self._done += done_bytes
        now = time.monotonic()
        if self._step is None or now < self._next_draw or os.getpid() != self._pid:
            return
        if self._bar is None:
            self._bar = _new_bar(*self._step)
        self._bar.update(self._bar.task_ids[0], completed=self._done)
        self._bar.refresh()
        self._next_draw = now + _REFRESH_SECONDS


def _new_bar(label: str, total_bytes: int | None) -> "rich.progress.Progress":
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.TextColumn("{task.description:<12}"),
        progress.BarColumn(bar_width=32),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
    )
    bar.add_task(label, total=total_bytes)
    bar.start()
    return bar


def for_terminal() -> Progress:
    """Return bars where standard error is a terminal, else silence."""
    return Bars() if sys.stderr.isatty() else Silent()
