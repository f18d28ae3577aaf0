"""What a leg says of each workload, and what all of it comes to. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

Result = Literal["ok", "refused", "failed"]


class Outcome(msgspec.Struct):
    """How a workload came through one leg.

    Attributes:
        name: of the workload.
        result: "refused" if a command gave a reason and left nothing; "failed" for all else.
        reason: why it is not "ok".
        notes: what of it is not quite as it was.
        seconds: how long it took.
    """

    name: str
    result: Result
    reason: str = ""
    notes: list[str] = []
    seconds: float = 0.0


def journeys(text: str) -> list[list[str]]:
    """Return the journeys of *text*, words such as 6.1-6.18-6.1: kernels in their order.

    Raises:
        ValueError: a word is no journey.
    """
    found = [word.split("-") for word in text.split()]
    if not found or any(len(journey) < 2 or not all(journey) for journey in found):
        raise ValueError(f"{text!r}: a journey is two or more kernels, as 6.1-6.18")
    return found


def merge(before: Outcome | None, now: Outcome, kernel: str) -> Outcome:
    """Return what two legs in a row come to; the second one was under *kernel*."""
    return Outcome(
        now.name,
        now.result,
        f"under {kernel}: {now.reason}" if now.reason else "",
        [*(before.notes if before else []), *(f"under {kernel}: {note}" for note in now.notes)],
        now.seconds + (before.seconds if before else 0),
    )


def table(rows: Mapping[str, Mapping[str, Outcome]], columns: Sequence[str]) -> list[str]:
    """Return a table, workloads by journeys, and its count; then the reasons and notes.

    Args:
        rows: outcomes by workload and journey.
        columns: the journeys.
    """
    width = max(map(len, rows), default=0)
    lines = ["  ".join([" " * width, *columns])]
    for name, row in sorted(rows.items()):
        cells = [row[column].result.ljust(len(column)) for column in columns]
        lines.append("  ".join([name.ljust(width), *cells]).rstrip())
    counts = count(rows, columns)
    lines.append(", ".join(f"{number} {result}" for result, number in counts.items()))
    return lines + list(dict.fromkeys(_remarks(rows, columns)))


def count(rows: Mapping[str, Mapping[str, Outcome]], columns: Sequence[str]) -> dict[str, int]:
    """Return how many came through, were refused, failed."""
    counts = {"ok": 0, "refused": 0, "failed": 0}
    for row in rows.values():
        for column in columns:
            counts[row[column].result] += 1
    return counts


def _remarks(rows: Mapping[str, Mapping[str, Outcome]], columns: Iterable[str]) -> Iterable[str]:
    for name, row in sorted(rows.items()):
        for column in columns:
            if row[column].result != "ok":
                yield f"{name}, {column}: {row[column].reason}"
            else:
                yield from (f"{name}, {column}: {note}" for note in row[column].notes)
