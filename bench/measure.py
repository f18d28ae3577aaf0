"""Taking times: repeated runs, medians, and the table that shows them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

RUNS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; *other* is the yardstick's number, or ""."""

    what: str
    value: str
    other: str = ""
    goal: str = ""


def ms(seconds: list[float]) -> str:
    """Median and range of *seconds*, in milliseconds."""
    values = [1000 * s for s in seconds]
    return f"{statistics.median(values):.0f} ({min(values):.0f} - {max(values):.0f})"


def timed(action: Callable[[], object]) -> float:
    """Run *action*; return the seconds that it took."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def times(action: Callable[[], object], runs: int = RUNS) -> list[float]:
    """Run *action* once unmeasured, then *runs* times; return the seconds of each."""
    action()
    return [timed(action) for _ in range(runs)]


def table(heading: tuple[str, ...], rows: list[Row]) -> str:
    """Return *rows* as a Markdown table that lines up as text, too."""
    return aligned([heading, *((row.what, row.value, row.goal, row.other) for row in rows)])


def aligned(lines: list[tuple[str, ...]]) -> str:
    """Return *lines*, of which the first is the heading, in the same form."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], tuple("-" * width for width in widths), *lines[1:]]
    return "".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )
