"""Who keeps a shutdown waiting until the pods are on disk: a process beside the service.

    python -m autopod.status.inhibit     until its standard input ends

It holds a delay lock of logind's. When somebody orders a shutdown or a reboot (`systemctl reboot`),
logind says so and waits, InhibitDelayMaxSec at most; meanwhile the host is drained as
`autopod drain --no-install` does it, and at the boot the service restarts the pods. If the shutdown
is called off they are restarted at once.

Source: org.freedesktop.login1(5), Inhibit(), PrepareForShutdown; systemd's "Inhibitor Locks".
"""

import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from autopod.errors import Refused
from autopod.status import byhand, store
from autopod.status import drain as drains
from autopod.status.store import ENDED
from launcher import commandline
from launcher.places import Places

if TYPE_CHECKING:
    from collections import deque

_NAME: Final = "org.freedesktop.login1"
_PATH: Final = "/org/freedesktop/login1"
_MANAGER: Final = "org.freedesktop.login1.Manager"
_ANSWER_S: Final = 25
_PAUSE_S: Final = 0.1


def main() -> int:
    """Be the process."""
    from jeepney.io.blocking import open_dbus_connection
    from jeepney.wrappers import DBusErrorResponse

    places = Places.from_environment()
    try:
        with open_dbus_connection("SYSTEM", enable_fds=True) as bus:
            _Inhibitor(places, bus).run()
    except (OSError, DBusErrorResponse, StopIteration) as e:
        sys.stderr.write(f"autopod: error: logind is not to be had: {e or 'no system bus'}\n")
        return 1
    except Exception as e:  # noqa: BLE001 (it is told, and the service starts it again)
        commandline.complain("autopod", e)
        return 1
    return 0


class _Inhibitor:
    """Holds the lock, and drains the host before it gives it up.

    *bus* is jeepney's connection, which has no types.
    """

    def __init__(self, places: Places, bus: Any) -> None:  # noqa: ANN401
        self._places, self._bus = places, bus
        self._lock: int | None = None
        self._drained = False

    def run(self) -> None:
        """Do it until the standard input ends, or the bus does.

        Raises:
            OSError: the bus has ended.
            DBusErrorResponse: logind does not let it.
        """
        from jeepney import MatchRule, message_bus

        rule = MatchRule(type="signal", interface=_MANAGER, member="PrepareForShutdown", path=_PATH)
        with self._bus.filter(rule) as signals:
            self._ask(message_bus.AddMatch(rule))
            self._take()
            try:
                while self._wait(signals):
                    signal = signals.popleft()
                    if self._is_logind(signal):
                        self._hear(begins=bool(signal.body[0]))
            finally:
                self._release()

    def _wait(self, signals: "deque[Any]") -> bool:
        """Wait for a signal; False: the standard input has ended."""
        while not signals:
            with suppress(TimeoutError):
                while not signals:  # what came with an answer has been read already
                    self._bus.recv_messages(timeout=0)
            if not signals and 0 in select.select([0, self._bus.sock], [], [])[0]:
                return False
        return True

    def _is_logind(self, signal: Any) -> bool:  # noqa: ANN401
        """Has logind sent it? Whoever is on the bus could have."""
        from jeepney import HeaderFields, message_bus

        sender = signal.header.fields.get(HeaderFields.sender)
        if sender == self._ask(message_bus.GetNameOwner(_NAME))[0]:
            return True
        sys.stderr.write(f"autopod: {sender} on the bus says what only logind may say: ignored\n")
        return False

    def _hear(self, *, begins: bool) -> None:
        if begins:
            self._drain()
            self._release()
            return
        if self._drained:
            self._drained = False
            self._try("the pods were not restarted", lambda: byhand.undo(self._places))
        if self._lock is None:
            self._take()

    def _drain(self) -> None:
        """Have the pods on disk, unless they are there, or on their way."""
        if not drains.running(self._places) or _is_drained(self._places):
            return

        def drain() -> None:
            said = byhand.drain(self._places, install=False)
            self._drained = said.status == 0
            if said.against:
                raise Refused("; ".join(said.against))

        self._try("the pods are not on disk", drain)

    def _try(self, failure: str, action: Any) -> None:  # noqa: ANN401
        """Do something for as long as logind waits: somebody else may look after the host."""
        end = time.monotonic() + self._delay_s()
        while True:
            try:
                action()
            except Refused as e:
                if time.monotonic() > end or "another process" not in str(e):
                    sys.stderr.write(f"autopod: error: {failure}: {e}\n")
                    return
                time.sleep(_PAUSE_S)
            except Exception as e:  # noqa: BLE001 (the shutdown goes on, whatever it is)
                commandline.complain("autopod", e)
                return
            else:
                return

    def _delay_s(self) -> float:
        """Return for how long logind waits."""
        from jeepney import DBusAddress, Properties

        asked = Properties(DBusAddress(_PATH, _NAME, _MANAGER)).get("InhibitDelayMaxUSec")
        return float(self._ask(asked)[0][1]) / 1e6

    def _take(self) -> None:
        from jeepney import DBusAddress, new_method_call

        words = ("shutdown", "AutoPod", "pods are written to disk", "delay")
        manager = DBusAddress(_PATH, _NAME, _MANAGER)
        [got] = self._ask(new_method_call(manager, "Inhibit", "ssss", words))
        self._lock = got.to_raw_fd()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _ask(self, message: Any) -> Any:  # noqa: ANN401
        from jeepney.wrappers import unwrap_msg

        return unwrap_msg(self._bus.send_and_get_reply(message, timeout=_ANSWER_S))


def _is_drained(places: Places) -> bool:
    if not store.path(places).exists():
        return False
    with store.opened(places) as history:
        last = history.last_drain()
    return last is not None and last.phase not in ENDED


if __name__ == "__main__":
    sys.exit(main())
