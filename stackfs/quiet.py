"""Keeping the log from filling a disk: a message that repeats is written a few times a minute."""

import logging
import time
from collections.abc import Callable
from typing import Final

BURST: Final = 10
"""So many records of one message are written in PERIOD_SECONDS."""

PERIOD_SECONDS: Final = 60.0


class Limit(logging.Filter):
    """Passes a message's first records of each period; says how many it has kept back.

    Records are of one message where logger and text before formatting are the same.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:  # type: ignore[explicit-override]
        """Tell whether a record is to be written."""
        key, now = (record.name, str(record.msg)), self._now()
        begun, count = self._seen.get(key, (now, 0))
        if now - begun >= PERIOD_SECONDS:
            if count > BURST:
                record.msg = f"{record.msg} ({count - BURST} more like it were not written)"
            begun, count = now, 0
        self._seen[key] = begun, count + 1
        return count < BURST
