"""Progress of long steps: bars with throughput for a person, nothing for a program."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import rich.progress


class Progress(Protocol):
    """Told of steps, and of bytes done in them. Steps do not nest; one thread calls."""

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
    """For a terminal on standard error: a bar per step, gone when the step is done."""

    def __init__(self) -> None:
        self._bar: rich.progress.Progress | None = None

    @contextmanager
    def step(self, label: str, total_bytes: int | None = None) -> Iterator[None]:
        """Show a bar while the block runs."""
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description:<24}"),
            progress.BarColumn(bar_width=32),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeElapsedColumn(),
        )
        with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            bar.add_task(label, total=total_bytes)
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def advance(self, done_bytes: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], done_bytes)


def for_terminal() -> Progress:
    """Return bars where standard error is a terminal, else silence."""
    return Bars() if sys.stderr.isatty() else Silent()
