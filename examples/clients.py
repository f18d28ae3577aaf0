"""Clients of a service in a pod that notice everything: what they check is for each service to say.

They go on, each in a thread of its own, until they are told to end. Whatever is not as it should be
is kept as a failure: a wrong answer, a connection that was closed.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

TIMEOUT_S = 60.0
"""How long a client waits for an answer."""


@dataclass(slots=True)
class Seen:
    """What clients have seen so far.

    Attributes:
        answers: how many answers were right.
        slowest_s: the longest that anybody has waited for one.
        failures: what went wrong.
    """

    answers: int = 0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


class Clients:
    """Threads that ask, wait, and check."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.seen = Seen()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._heard: Counter[int] = Counter()

    def add(self, ask: Callable[[], None], close: Callable[[], None]) -> None:
        """Begin to call *ask* again and again; *close* when all is over.

        An OSError or ValueError of *ask* is a failure, after which it is not called any more.
        """
        thread = threading.Thread(target=self._run, args=(ask, close), daemon=True)
        self._threads.append(thread)
        thread.start()

    def __len__(self) -> int:
        """How many clients there are."""
        return len(self._threads)

    def heard(self) -> Counter[int]:
        """How often each client has heard something, by the number of its thread."""
        with self._lock:
            return self._heard.copy()

    def answered(self, asked: float, number: int = 1) -> None:
        """Note answers to what was asked at *asked* (time.monotonic()); none yet: a first part."""
        with self._lock:
            self.seen.answers += number
            self._heard[threading.get_ident()] += 1
            self.seen.slowest_s = max(self.seen.slowest_s, time.monotonic() - asked)

    def take_slowest(self) -> float:
        """Return how long somebody has waited at most since the last call, in seconds."""
        with self._lock:
            slowest, self.seen.slowest_s = self.seen.slowest_s, 0.0
        return slowest

    def end(self) -> Seen:
        """Let what was begun be finished; return what was seen."""
        self.over.set()
        for thread in self._threads:
            thread.join()
        return self.seen

    def _run(self, ask: Callable[[], None], close: Callable[[], None]) -> None:
        try:
            while not self.over.is_set():
                ask()
        except (OSError, ValueError) as e:
            with self._lock:
                self.seen.failures.append(f"{type(e).__name__}: {e}")
        finally:
            close()
