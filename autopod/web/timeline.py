"""A drain as a picture: events in, stretches of time out. Pure."""

from collections.abc import Iterable

import msgspec

from autopod.status.store import ENDED, Event


class Span(msgspec.Struct, frozen=True):
    """Something that lasts.

    Attributes:
        row: a pod; "": the host.
        what: the phase of the drain, or where the pod is.
        begins: in seconds of the epoch.
        ends: likewise; None: it still goes on.
    """

    row: str
    what: str
    begins: float
    ends: float | None


def spans(drain: str, events: Iterable[Event]) -> list[Span]:
    """Return what the host and its pods went through in the drain with that id, row by row."""
    rows: dict[str, list[Span]] = {"": []}
    last: float | None = None
    for event in events:
        if event.drain != drain or event.what is None:
            continue
        at, row = event.at.timestamp(), event.pod or ""
        if not row and event.what in ENDED:  # which lasts no time
            last = at
        else:
            _go_on(rows.setdefault(row, []), Span(row, event.what, at, None))
    return [_cut(one, last) for row in rows.values() for one in row]


def _go_on(row: list[Span], span: Span) -> None:
    """Let *span* follow what was before it, unless that still goes on."""
    if row and row[-1].what == span.what:
        return
    if row:
        row[-1] = msgspec.structs.replace(row[-1], ends=span.begins)
    row.append(span)


def _cut(span: Span, last: float | None) -> Span:
    """Let what still goes on end where the drain has ended, if it has."""
    if span.ends is not None or last is None:
        return span
    return msgspec.structs.replace(span, ends=max(last, span.begins))
