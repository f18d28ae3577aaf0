"""The state, looked at when somebody asks, and again and again while somebody watches."""

import time
from collections.abc import Callable
from typing import Final

import trio

from autopod.web import state
from autopod.web.jobs import Jobs
from autopod.web.state import State

EVERY_S: Final = 2.0
_FRESH_S: Final = 1.0
_PATIENCE_S: Final = 60.0


class Feed:
    """One look serves all who ask."""

    def __init__(self, look: Callable[[], State], jobs: Jobs) -> None:
        self._look, self._jobs = look, jobs
        self._state: State | None = None
        self._looked = 0.0
        self._pokes = 0
        self._lock = trio.Lock()
        self._awake = trio.Event()

    async def state(self, within_s: float = _FRESH_S) -> State:
        """Return a state that is at most *within_s* old.

        Raises:
            trio.TooSlowError: it takes too long to look.
        """
        async with self._lock:
            if self._state is None or time.monotonic() - self._looked > within_s:
                pokes = self._pokes
                with trio.fail_after(_PATIENCE_S):
                    self._state = await trio.to_thread.run_sync(self._look, abandon_on_cancel=True)
                self._looked = time.monotonic() if pokes == self._pokes else 0.0
            return self._state

    async def json(self, within_s: float = _FRESH_S) -> bytes:
        """Return it for a browser, with the jobs as they are now."""
        return state.as_json(await self.state(within_s), self._jobs.all())

    def poke(self) -> None:
        """What was seen before now is old: something was begun here, or has ended."""
        self._pokes, self._looked = self._pokes + 1, 0.0
        self._awake.set()
        self._awake = trio.Event()

    async def pause(self) -> None:
        """Wait until it is time to look again."""
        with trio.move_on_after(EVERY_S):
            await self._awake.wait()
