"""Sessions that their users have ended, remembered for as long as they would have lasted.

On disk, for a session outlives the page's process, and a reboot.
"""

from pathlib import Path

import msgspec

from autopod.errors import Refused
from launcher import book
from launcher.places import Places


class _Book(msgspec.Struct, frozen=True):
    """Until when each would have lasted, in seconds of the epoch."""

    until: dict[str, int]


def path(places: Places) -> Path:
    """Return where they are remembered."""
    return places.states() / "web-ended.json"


class Ended:
    """They, by the names that auth.Gate gives them."""

    def __init__(self, file: Path) -> None:
        """Read them.

        Raises:
            Refused: *file* is not what was written.
        """
        self._file, self._until = file, dict[str, int]()
        try:
            self._until = msgspec.json.decode(file.read_bytes(), type=_Book).until
        except FileNotFoundError:
            return
        except msgspec.DecodeError as e:
            raise Refused(
                f"{file} cannot be understood: {e}", "end all sessions: new tokens"
            ) from e

    def __contains__(self, session: str) -> bool:
        return session in self._until

    def add(self, session: str, until: int, now: float) -> None:
        """Remember one; forget those that have ended by themselves."""
        last = {name: end for name, end in self._until.items() if end >= now}
        self._until = {**last, session: until}
        book.write(self._file, _Book(self._until))
