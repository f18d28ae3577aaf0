"""What a fleet keeps: entries with revisions under names, changed by transactions. The interface.

A revision is a number that grows with each transaction of the store; an entry's is that of the
transaction which wrote it last, so that whoever knows it knows that nobody has written since:
it is what transactions are compared by, and the fencing token of what the entry stands for.

Two stores are there, under one test: etcd (autopod/fleet/etcd.py), for hosts that may fail each by
itself, and a file (autopod/fleet/sqlite.py), for the instances of one machine.
"""

import math
import re
from collections.abc import Sequence
from typing import Final, Protocol, Self, TypeVar

import msgspec
import trio
from msgspec import Struct

MAX_CHANGES: Final = 100
MAX_BYTES: Final = 1 << 20
MAX_TTL_S: Final = 86400
_BUFFERED: Final = 64
_KEY: Final = re.compile("/[a-z]")

_T = TypeVar("_T")


class FleetError(Exception):
    """What a fleet keeps cannot be read or changed; *hint* says what may help, or is ""."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Unanswered(FleetError):  # noqa: N818 (what is the case)
    """No answer came: what was to be changed may have been, or not. Read before you decide."""


class LeaseGone(FleetError):  # noqa: N818 (what is the case)
    """A lease has ended, and with it what was written under it."""


class Forgotten(FleetError):  # noqa: N818 (what is the case)
    """The store no longer keeps the changes since a revision: read anew."""


class Entry(Struct, frozen=True):
    """What stands under a name.

    Attributes:
        key: the name, as `/members/first`.
        value: anything.
        revision: of the transaction that wrote it last.
        lease: with which it goes; 0: with none.
    """

    key: str
    value: bytes
    revision: int
    lease: int = 0


class Snapshot(Struct, frozen=True):
    """The entries of a prefix at one moment, in the order of their names.

    Attributes:
        revision: of the store then; a watch after it leaves nothing out.
        entries: what was there.
    """

    revision: int
    entries: list[Entry]


class Event(Struct, frozen=True):
    """An entry was written, or has gone (*entry* is None), in the transaction *revision*."""

    key: str
    revision: int
    entry: Entry | None


class Compare(Struct, frozen=True):
    """A condition: *key* was last written by transaction *revision*; 0: it is not there."""

    key: str
    revision: int


class Put(Struct, frozen=True):
    """A change: *key* is to be *value*, until *lease* ends, if that is not 0."""

    key: str
    value: bytes
    lease: int = 0


class Delete(Struct, frozen=True):
    """A change: *key* is not to be there; that it was not is no error."""

    key: str


Change = Put | Delete


class Lease(Struct, frozen=True):
    """A lease that was granted; the store may have made its time longer than asked for."""

    id: int
    ttl_s: float


class Store(Protocol):
    """What all that is above this module uses. One object belongs to one trio.run()."""

    async def get(self, key: str) -> Entry | None:
        """Return what stands under *key* now, at a majority of the store's members.

        Raises:
            FleetError: it cannot be told.
        """

    async def scan(self, prefix: str) -> Snapshot:
        """Return the entries whose names begin with *prefix*, all of one moment.

        Raises:
            FleetError: they cannot be told.
        """

    async def keys(self, prefix: str) -> list[str]:
        """Return the names that begin with *prefix*, in order: what stands there is not sent.

        Raises:
            FleetError: they cannot be told.
        """

    async def count(self, prefix: str) -> int:
        """Return how many names begin with *prefix*.

        Raises:
            FleetError: it cannot be told.
        """

    async def apply(self, compares: Sequence[Compare], changes: Sequence[Change]) -> int | None:
        """Make all *changes* in one transaction, if all *compares* hold, else none.

        Returns:
            Its revision; None: a condition did not hold, and nothing was changed or will be.

        Raises:
            ValueError: too many, too much, or two changes of one entry.
            LeaseGone: that of a change is not there; nothing was changed.
            Unanswered: it is not known whether it was done.
            FleetError: nothing was changed.
        """

    async def grant(self, ttl_s: float) -> Lease:
        """Make a lease that ends *ttl_s* after it was granted or renewed last.

        Raises:
            FleetError: it was not made, or ends without having been used.
        """

    async def renew(self, lease: int) -> float:
        """Let a lease run from now; return for how many seconds.

        Raises:
            LeaseGone: it has ended.
            FleetError: it is not known to have been renewed.
        """

    async def revoke(self, lease: int) -> None:
        """End a lease now; that it has ended already is no error.

        Raises:
            FleetError: it may go on until its time has come.
        """

    async def aclose(self) -> None:
        """Let go of connections and files."""

    async def feed(self, prefix: str, after: int, to: "trio.MemorySendChannel[Event]") -> None:
        """Send what happens below *prefix* after a revision, until cancelled; for watch().

        Raises:
            Forgotten: it cannot be told any more.
        """


class Watch:
    """Events, as they come: `async for event in watch`. What ends it early is raised there."""

    def __init__(self, events: "trio.MemoryReceiveChannel[Event]") -> None:
        self._events = events
        self.ended: FleetError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            if self.ended is None:
                raise StopAsyncIteration from None
            raise self.ended from None


def watch(store: Store, nursery: trio.Nursery, prefix: str, after: int) -> Watch:
    """Be told what happens below *prefix* after revision *after*, nothing twice or left out.

    While the store cannot be reached the watch waits, and goes on from where it was. It ends with
    *nursery*.
    """
    send, receive = trio.open_memory_channel[Event](_BUFFERED)
    told = Watch(receive)
    nursery.start_soon(_watch, store, check_key(prefix), after, send, told)
    return told


async def _watch(
    store: Store, prefix: str, after: int, to: "trio.MemorySendChannel[Event]", told: Watch
) -> None:
    async with to:
        try:
            await store.feed(prefix, after, to)
        except FleetError as e:
            told.ended = e


def decode(entry: Entry, kind: type[_T]) -> _T:
    """Return what an entry says, JSON of a *kind*. Pure.

    Raises:
        FleetError: it cannot be understood.
    """
    try:
        return msgspec.json.decode(entry.value, type=kind)
    except msgspec.DecodeError as e:
        raise FleetError(f"{entry.key}: it cannot be understood: {e}") from e


def check_key(key: str) -> str:
    """Return *key* if it can name an entry, or begin such names. Pure.

    Raises:
        ValueError: it cannot.
    """
    if not _KEY.match(key) or len(key) > 512 or not key.isprintable():
        raise ValueError(f"{key!r} cannot name an entry: use /NAME/NAME, printable")
    return key


def check_transaction(compares: Sequence[Compare], changes: Sequence[Change]) -> None:
    """Refuse what not every store could do. Pure.

    Raises:
        ValueError: too many, too much, or two changes of one entry.
    """
    keys = [check_key(change.key) for change in changes]
    for compare in compares:
        check_key(compare.key)
    if max(len(compares), len(changes)) > MAX_CHANGES:
        raise ValueError(f"more than {MAX_CHANGES} changes or conditions in a transaction")
    if len(set(keys)) < len(keys):
        raise ValueError("an entry is changed twice in one transaction")
    if sum(len(change.value) for change in changes if isinstance(change, Put)) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes in a transaction")


def check_ttl(ttl_s: float) -> int:
    """Return the whole seconds that a lease of *ttl_s* lasts. Pure.

    Raises:
        ValueError: none can.
    """
    if not 0 < ttl_s <= MAX_TTL_S:
        raise ValueError(f"a lease of {ttl_s} s: use more than 0 and at most {MAX_TTL_S}")
    return math.ceil(ttl_s)
