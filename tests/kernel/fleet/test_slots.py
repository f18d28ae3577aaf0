"""Reboot slots, members and what has happened, on stores of both kinds."""

import contextlib
import json

import pytest
import trio
from msgspec.structs import replace

from autopod.errors import Refused
from autopod.fleet import fleetlock, history, members, show, slots
from autopod.fleet.members import Member
from autopod.fleet.slots import NoSlot
from autopod.fleet.store import FleetError, Put

pytestmark = pytest.mark.slow

FIRST = Member("first", "192.0.2.1:7463", "f1", "web", 1, "6.1", "x86_64", ["avx"], 1 << 30, ["a"])
HEADERS = {"Fleet-Lock-Protocol": "true"}


def request(client="c988d2509fdf5cdcbed39037c56406fb", group="web"):
    return json.dumps({"client_params": {"id": client, "group": group}, "more": 1}).encode()


async def test_of_many_that_ask_at_once_as_many_get_one_as_there_are(opened):
    had = []

    async def work(store, who):
        for _ in range(3):
            with contextlib.suppress(NoSlot):
                await slots.take(store, "web", who, 2)
                had.append(who)
                now = (await slots.holders_of_all(store))["web"]
                assert len(now) <= 2
                assert who in {one.id for one in now}
                assert await slots.give(store, "web", who)

    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened()) for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for number, store in enumerate(stores):
                nursery.start_soon(work, store, f"host{number}")
        assert had
        assert await slots.holders_of_all(stores[0]) == {}


async def test_a_slot_is_taken_and_given_back_as_often_as_one_likes(opened):
    async with opened() as store:
        for _ in range(2):
            await slots.take(store, "web", "first", 1)
        await slots.look(store, "web", "first", 1)
        for ask in (slots.take, slots.look):
            with pytest.raises(NoSlot, match=r"'web' is free, of 1: taken by first since 20"):
                await ask(store, "web", "second", 1)
        await slots.take(store, "mail", "second", 1)
        assert not await slots.give(store, "web", "second")
        assert await slots.give(store, "web", "first")
        assert not await slots.give(store, "web", "first")
        await slots.take(store, "web", "second", 1)
        assert sorted(await show.release(store, "second")) == ["mail", "web"]
        with pytest.raises(Refused):
            await show.release(store, "second")
        with pytest.raises(NoSlot, match="of 0: taken by nobody"):
            await slots.take(store, "web", "first", 0)
        said = [event.text for event in await history.read(store)]
        assert said[:2] == ["first takes a slot of web", "second takes a slot of mail"]
        assert len(said) == 6


async def test_what_is_written_by_somebody_else_is_an_error_not_a_slot(opened):
    async with opened() as store:
        await store.apply([], [Put("/slots/web", b'[{"id": 7}]')])
        with pytest.raises(FleetError, match="/slots/web: it cannot be understood"):
            await slots.take(store, "web", "first", 9)


async def test_fleetlock(opened):
    async with opened() as store:

        async def ask(path, **client):
            return await fleetlock.answer(store, {"web": 1}, path, HEADERS, request(**client))

        for _ in range(2):
            assert (await ask("/v1/pre-reboot")).status == 200
        refused = await ask("/v1/pre-reboot", client="other")
        error = json.loads(refused.body)
        assert (refused.status, error["kind"]) == (409, "no_slot")
        assert "taken by fleetlock/c988" in error["value"]
        with pytest.raises(NoSlot):
            await slots.take(store, "web", "c988d2509fdf5cdcbed39037c56406fb", 1)
        for _ in range(2):
            assert (await ask("/v1/steady-state")).status == 200
        await slots.take(store, "web", "first", 1)
        assert (await ask("/v1/steady-state", client="first")).status == 200
        assert [one.id for one in (await slots.holders_of_all(store))["web"]] == ["first"]


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "error"),
    [
        ("/v1/other", HEADERS, request(), 404, "no_such_path"),
        ("/v1/pre-reboot", {}, request(), 400, "no_protocol_header"),
        ("/v1/pre-reboot", {"fleet-lock-protocol": "false"}, request(), 400, "no_protocol_header"),
        ("/v1/pre-reboot", HEADERS, b"\xff", 400, "invalid_body"),
        ("/v1/pre-reboot", HEADERS, b"[]", 400, "invalid_body"),
        ("/v1/pre-reboot", HEADERS, b'{"client_params": {"id": "a"}}', 400, "invalid_body"),
        ("/v1/pre-reboot", HEADERS, request(client=""), 400, "invalid_id"),
        ("/v1/pre-reboot", HEADERS, request(client="a/b"), 400, "invalid_id"),
        ("/v1/pre-reboot", HEADERS, request(group="../x"), 400, "invalid_group"),
        ("/v1/pre-reboot", HEADERS, request(group="mail"), 404, "no_such_group"),
        ("/v1/pre-reboot", HEADERS, b" " * (1 << 17), 413, "too_long"),
    ],
)
async def test_what_is_not_fleetlock_changes_nothing(opened, path, headers, body, status, error):
    async with opened() as store:
        said = await fleetlock.answer(store, {"web": 1}, path, headers, body)
        assert (said.status, json.loads(said.body)["kind"]) == (status, error)
        assert (await store.scan("/slots/")).entries == []


async def test_fleetlock_without_a_store_says_that_it_is_not_so(opened):
    async with opened() as store:
        await store.apply([], [Put("/slots/web", b"?")])
        said = await fleetlock.answer(store, {"web": 1}, fleetlock.PATHS[1], HEADERS, request())
        assert (said.status, json.loads(said.body)["kind"]) == (503, "unavailable")


async def test_a_member_is_there_as_long_as_its_lease(opened):
    async with opened() as store:
        lease, later = await store.grant(600), await store.grant(600)
        await members.announce(store, FIRST, lease.id)
        before = await store.get("/members/first")
        await members.announce(store, FIRST, lease.id)
        assert await store.get("/members/first") == before
        with pytest.raises(FleetError, match="another host of the fleet has the name 'first'"):
            await members.announce(store, replace(FIRST, fingerprint="f2"), later.id)
        changed = replace(FIRST, pods=["a", "b"])
        await members.announce(store, changed, later.id)
        await store.revoke(lease.id)
        assert await members.read(store) == [changed]
        assert "a b" in show.text(await show.gather(store))
        await store.revoke(later.id)
        assert await members.read(store) == []
        assert [event.kind for event in await history.read(store)] == ["joined"]


async def test_what_has_happened_long_since_goes(opened, monkeypatch):
    monkeypatch.setattr(history, "KEPT", 5)
    async with opened() as store:
        for number in range(8):
            await store.apply([], [history.told("first", "test", str(number))])
        await history.prune(store)
        assert [one.text for one in await history.read(store)] == ["3", "4", "5", "6", "7"]
