"""A store in etcd: entries are its keys below a root, revisions its own.

A transaction without an answer may have been done, may be on its way, or be lost. So each one also
writes the *mark* of this client, and is done only if nobody has since it was written last. Who has
no answer sends the same once more, with an alternative: if it cannot be done now, the mark is told
and written anew. Then it is known, by the mark, whether the first one was done, and that it never
will be.

Source: etcd, Documentation/dev-guide/api_reference_v3.md, v3.4.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Final

import trio
from msgspec import Struct

from autopod.fleet.gateway import Access, Gateway, Json, Rejected
from autopod.fleet.store import (
    Change,
    Compare,
    Entry,
    Event,
    FleetError,
    Forgotten,
    Lease,
    LeaseGone,
    Put,
    Snapshot,
    Unanswered,
    check_key,
    check_transaction,
    check_ttl,
)

_PAGE: Final = 1000
_PAGE_OF_KEYS: Final = 10_000
_MARK_S: Final = 3600
_PAUSE_S: Final = 0.2
_NOT_FOUND: Final = 5


class _Header(Struct, frozen=True):
    revision: int = 0


class _Pair(Struct, frozen=True):
    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    lease: int = 0


class _Range(Struct, frozen=True):
    header: _Header = _Header()
    kvs: list[_Pair] = []
    more: bool = False
    count: int = 0


class _Done(Struct, frozen=True):
    response_range: _Range | None = None


class _Txn(Struct, frozen=True):
    header: _Header = _Header()
    succeeded: bool = False
    responses: list[_Done] = []


class _Grant(Struct, frozen=True):
    ID: int = 0
    TTL: int = 0


class _KeptAlive(Struct, frozen=True):
    result: _Grant = _Grant()


class _Change(Struct, frozen=True):
    type: str = "PUT"
    kv: _Pair = _Pair()


class _Watched(Struct, frozen=True):
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: list[_Change] = []


class _Line(Struct, frozen=True):
    result: _Watched = _Watched()


class _Nothing(Struct, frozen=True):
    pass


class Etcd:
    """A store in etcd."""

    def __init__(self, access: Access, root: str = "/autopod") -> None:
        """Open it; nothing is asked yet.

        Raises:
            FleetError: certificates or key cannot be used.
        """
        self._root = root
        self._gateway = Gateway(access)
        self._one = trio.Lock()
        self._mark = f"{root}/.clients/{uuid.uuid4().hex}".encode()
        self._mark_lease, self._lease_good_until = 0, 0.0
        self._marked: int | None = 0  # when; None: it is not known, for an answer is missing

    async def get(self, key: str) -> Entry | None:
        """See store.Store.get()."""
        async with self._one:
            await self._settle()
            asked = {"key": self._name(key)}
            found = await self._gateway.call("kv/range", asked, _Range)
        return self._entry(found.kvs[0]) if found.kvs else None

    async def scan(self, prefix: str) -> Snapshot:
        """See store.Store.scan()."""
        revision, found = await self._range(prefix, _PAGE)
        return Snapshot(revision, [self._entry(pair) for pair in found])

    async def keys(self, prefix: str) -> list[str]:
        """See store.Store.keys()."""
        _, found = await self._range(prefix, _PAGE_OF_KEYS, keys_only=True)
        return [self._entry(pair).key for pair in found]

    async def count(self, prefix: str) -> int:
        """See store.Store.count()."""
        asked = {**self._span(prefix), "count_only": True}
        async with self._one:
            await self._settle()
            return (await self._gateway.call("kv/range", asked, _Range)).count

    async def apply(self, compares: Sequence[Compare], changes: Sequence[Change]) -> int | None:
        """See store.Store.apply()."""
        check_transaction(compares, changes)
        async with self._one:
            await self._settle()
            while True:
                done = await self._try(compares, changes)
                if done is not None:
                    return done or None

    async def grant(self, ttl_s: float) -> Lease:
        """See store.Store.grant()."""
        asked = {"TTL": check_ttl(ttl_s)}
        granted = await self._gateway.call("lease/grant", asked, _Grant)
        return Lease(granted.ID, granted.TTL)

    async def renew(self, lease: int) -> float:
        """See store.Store.renew()."""
        kept = await self._gateway.call("lease/keepalive", {"ID": lease}, _KeptAlive)
        if not kept.result.TTL:
            raise LeaseGone(f"lease {lease} has ended")
        return kept.result.TTL

    async def revoke(self, lease: int) -> None:
        """See store.Store.revoke()."""
        try:
            await self._gateway.call("lease/revoke", {"ID": lease}, _Nothing)
        except Rejected as e:
            if e.code != _NOT_FOUND:
                raise

    async def aclose(self) -> None:
        """See store.Store.aclose()."""
        await self._gateway.aclose()

    async def feed(self, prefix: str, after: int, to: "trio.MemorySendChannel[Event]") -> None:
        """See store.Store.feed()."""

        async def pass_on(line: _Line) -> bool:
            nonlocal after
            _check(line.result)
            for change in line.result.events:
                await to.send(self._event(change))
            after = max([after, *(change.kv.mod_revision for change in line.result.events)])
            return not line.result.canceled

        while True:
            asked = {"create_request": {**self._span(prefix), "start_revision": after + 1}}
            await self._gateway.stream("watch", asked, _Line, pass_on)
            await trio.sleep(_PAUSE_S)

    async def _range(
        self, prefix: str, limit: int, *, keys_only: bool = False
    ) -> tuple[int, list[_Pair]]:
        """Return what begins with *prefix*, and the revision at which it does."""
        async with self._one:
            await self._settle()
            asked = {**self._span(prefix), "limit": limit, "keys_only": keys_only}
            page = await self._gateway.call("kv/range", asked, _Range)
            revision, found = page.header.revision, page.kvs
            while page.more:
                more = {**asked, "key": found[-1].key + b"\0", "revision": revision}
                page = await self._gateway.call("kv/range", more, _Range)
                found += page.kvs
        return revision, found

    async def _try(self, compares: Sequence[Compare], changes: Sequence[Change]) -> int | None:
        """Make the transaction, and the mark with it.

        Returns:
            Its revision; 0: a condition did not hold; None: the mark was not what it should be,
            and the transaction was not made.
        """
        mine, expected = uuid.uuid4().bytes, self._marked or 0
        conditions = [self._condition(compare) for compare in compares]
        conditions.append(_equal(self._mark, expected))
        put = {"request_put": {"key": self._mark, "value": mine, "lease": await self._lease()}}
        look = {"request_range": {"key": self._mark}}
        fence = {"request_put": {**put["request_put"], "value": b""}}
        request = {
            "compare": conditions,
            "success": [*(self._operation(change) for change in changes), put],
        }
        first, again = {**request, "failure": [look]}, {**request, "failure": [look, fence]}
        self._marked = None
        try:
            done = await self._gateway.call("kv/txn", first, _Txn, again=again)
        except Rejected as e:
            self._marked = expected
            if e.code == _NOT_FOUND:
                raise LeaseGone(str(e)) from e
            raise
        if done.succeeded:
            self._marked = done.header.revision
            return self._marked
        return self._read_mark(done, mine, expected)

    def _read_mark(self, done: _Txn, mine: bytes, expected: int) -> int | None:
        """Return, as _try() does, what the mark tells after a condition did not hold."""
        told = done.responses[0].response_range if done.responses else None
        there = told.kvs[0] if told and told.kvs else _Pair()
        fenced = len(done.responses) > 1
        self._marked = done.header.revision if fenced else there.mod_revision
        if there.value == mine:
            return there.mod_revision
        if there.mod_revision == expected:
            return 0
        if fenced:
            raise Unanswered("etcd: what became of a transaction cannot be told any more")
        return None

    async def _settle(self) -> None:
        """See to it that no transaction is on its way of which it is not known what became."""
        if self._marked is None:
            put = {"key": self._mark, "lease": await self._lease()}
            done = await self._gateway.call("kv/txn", {"success": [{"request_put": put}]}, _Txn)
            self._marked = done.header.revision

    async def _lease(self) -> int:
        """Return the lease of the mark: it goes when this client has gone long since.

        Each time that the mark is written it goes over to the newest lease.
        """
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if not self._mark_lease or now > self._lease_good_until:
            self._mark_lease = (await self.grant(_MARK_S)).id
            self._lease_good_until = now + _MARK_S / 2
        return self._mark_lease

    def _name(self, key: str) -> bytes:
        return (self._root + check_key(key)).encode()

    def _span(self, prefix: str) -> Json:
        name = self._name(prefix)  # text: its last byte is never the greatest
        return {"key": name, "range_end": name[:-1] + bytes([name[-1] + 1])}

    def _condition(self, compare: Compare) -> Json:
        return _equal(self._name(compare.key), compare.revision)

    def _operation(self, change: Change) -> Json:
        name = self._name(change.key)
        if isinstance(change, Put):
            put = {"key": name, "value": change.value, "lease": change.lease}
            return {"request_put": put}
        return {"request_delete_range": {"key": name}}

    def _entry(self, pair: _Pair) -> Entry:
        key = pair.key.decode(errors="replace").removeprefix(self._root)
        return Entry(key, pair.value, pair.mod_revision, pair.lease)

    def _event(self, change: _Change) -> Event:
        entry = self._entry(change.kv)
        return Event(entry.key, entry.revision, None if change.type == "DELETE" else entry)


def _equal(key: bytes, revision: int) -> Json:
    return {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision}


def _check(watched: _Watched) -> None:
    """Refuse to go on with a watch that never will.

    Raises:
        Forgotten: etcd was compacted.
        FleetError: it may not be watched.
    """
    if watched.compact_revision:
        raise Forgotten(f"etcd: what happened before {watched.compact_revision} is not kept")
    if watched.canceled and "ermission" in watched.cancel_reason:
        raise FleetError(f"etcd: {watched.cancel_reason}", "the user's role lacks a permission")
