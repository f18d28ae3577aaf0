"""What every store does: the same for SQLite and for three members of etcd."""

import contextlib

import pytest
import trio

from autopod.fleet import store as stores
from autopod.fleet.store import Compare, Delete, Event, LeaseGone, Put

pytestmark = pytest.mark.slow


async def test_an_entry_is_written_read_and_taken_away(opened):
    async with opened() as store:
        assert await store.get("/a/one") is None
        first = await store.apply([Compare("/a/one", 0)], [Put("/a/one", b"\x001")])
        entry = await store.get("/a/one")
        assert (entry.key, entry.value, entry.revision, entry.lease) == (
            "/a/one",
            b"\x001",
            first,
            0,
        )
        second = await store.apply(
            [Compare("/a/one", first)], [Delete("/a/one"), Put("/a/two", b"")]
        )
        assert second > first
        assert await store.get("/a/one") is None
        assert (await store.get("/a/two")).revision == second
        assert await store.apply([Compare("/a/one", 0)], [Delete("/a/one")]) > second


async def test_what_is_written_is_there_for_who_opens_it_later(opened):
    async with opened() as store:
        revision = await store.apply([], [Put("/a", b"1")])
    async with opened() as store:
        assert (await store.get("/a")).revision == revision


async def test_a_transaction_is_done_wholly_or_not_at_all(opened):
    async with opened() as one, opened() as two:
        revision = await one.apply([], [Put("/a", b"1"), Put("/b", b"1")])
        assert await two.apply([Compare("/a", revision)], [Put("/a", b"2")]) > revision
        stale = [Compare("/b", revision), Compare("/a", revision)]
        assert await one.apply(stale, [Put("/b", b"3"), Put("/c", b"3")]) is None
        assert await one.apply([Compare("/a", 0)], [Put("/c", b"3")]) is None
        assert [entry.value for entry in (await two.scan("/a")).entries] == [b"2"]
        assert (await one.get("/b")).value == b"1"
        assert await one.get("/c") is None


async def test_a_prefix_is_of_one_moment_and_in_order(opened):
    async with opened() as store:
        names = [f"/many/{number:03}" for number in range(250)]
        for at in range(0, 250, 50):
            await store.apply([], [Put(name, b"x") for name in names[at : at + 50]])
        last = await store.apply([], [Put("/manx", b""), Put("/man", b""), Put("/many%", b"")])
        found = await store.scan("/many/")
        assert [entry.key for entry in found.entries] == names
        assert found.revision >= last
        assert (await store.scan("/none")).entries == []


async def test_what_no_store_could_do_is_refused(opened):
    async with opened() as store:
        wrong = [
            [Put("/a", b""), Delete("/a")],
            [Put("a", b"")],
            [Put("/a\n", b"")],
            [Put("/.clients/x", b"")],
            [Put("/a", b"x" * (stores.MAX_BYTES + 1))],
            [Delete(f"/a{number}") for number in range(stores.MAX_CHANGES + 1)],
        ]
        for changes in wrong:
            with pytest.raises(ValueError, match=r"."):
                await store.apply([], changes)
        most = stores.MAX_BYTES // 100
        assert await store.apply([], [Put(f"/a{number}", b"x" * most) for number in range(100)])
        with pytest.raises(ValueError, match="lease"):
            await store.grant(0)


async def test_what_is_under_a_lease_goes_with_it(opened):
    async with opened() as store, opened() as other, trio.open_nursery() as nursery:
        lease, longer = await store.grant(2), await store.grant(600)
        assert lease.ttl_s >= 2
        begin = await store.apply(
            [], [Put("/here", b"1", lease.id), Put("/stays", b"1", longer.id)]
        )
        assert (await other.get("/here")).lease == lease.id
        assert await store.renew(lease.id) >= 2
        events = stores.watch(other, nursery, "/here", begin)
        with trio.fail_after(60):
            event = await anext(events)
        assert (event.key, event.entry) == ("/here", None)
        with pytest.raises(LeaseGone):
            await store.renew(lease.id)
        with pytest.raises(LeaseGone):
            await store.apply([], [Put("/other", b"1"), Put("/here", b"2", lease.id)])
        assert await store.get("/other") is None
        assert await store.get("/stays")
        await store.revoke(longer.id)
        await store.revoke(longer.id)
        assert await store.get("/stays") is None
        nursery.cancel_scope.cancel()


async def test_who_writes_without_the_lease_takes_the_entry_out_of_it(opened):
    async with opened() as store:
        lease = await store.grant(600)
        await store.apply([], [Put("/here", b"1", lease.id)])
        await store.apply([], [Put("/here", b"2")])
        await store.revoke(lease.id)
        assert (await store.get("/here")).value == b"2"


async def test_a_watch_tells_everything_once_and_in_order(opened):
    async with opened() as store, opened() as other, trio.open_nursery() as nursery:
        await store.apply([], [Put("/w/old", b"0")])
        begin = (await store.scan("/w/")).revision
        first = await store.apply([], [Put("/w/a", b"1")])
        events = stores.watch(other, nursery, "/w/", begin)
        second = await store.apply([], [Put("/w/a", b"2"), Put("/x", b"-"), Delete("/w/old")])
        third = await store.apply([], [Delete("/w/a")])
        with trio.fail_after(60):
            seen = [await anext(events) for _ in range(4)]
        assert seen[0] == Event("/w/a", first, stores.Entry("/w/a", b"1", first))
        both = {(one.key, one.revision, one.entry and one.entry.value) for one in seen[1:3]}
        assert both == {("/w/a", second, b"2"), ("/w/old", second, None)}
        assert seen[3] == Event("/w/a", third, None)
        nursery.cancel_scope.cancel()


async def test_of_many_that_add_at_once_none_is_lost(opened):
    async def add(store, times):
        for _ in range(times):
            while True:
                entry = await store.get("/sum")
                value, revision = (int(entry.value), entry.revision) if entry else (0, 0)
                if await store.apply(
                    [Compare("/sum", revision)], [Put("/sum", b"%d" % (value + 1))]
                ):
                    break

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(opened()) for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(add, client, 10)
        assert (await clients[0].get("/sum")).value == b"40"
