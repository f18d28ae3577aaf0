"""Pods of hosts that have died are claimed once, by one, on stores of both kinds."""

import contextlib

import pytest
import trio
from msgspec.structs import replace

from autopod.errors import Refused
from autopod.fleet import members, owners, recovery
from autopod.fleet.owners import Claim
from autopod.fleet.store import Put
from tests.kernel.fleet.test_slots import FIRST

pytestmark = pytest.mark.slow


async def armed(store):
    """Let host first have an armed pod; return the lease of the host."""
    lease = await store.grant(600)
    await members.announce(store, FIRST, lease.id)
    await owners.claim(store, "mail", Claim("first"))
    assert await recovery.arm(store, "mail", "first", 10)
    return lease.id


async def charge(store):
    [one] = (await recovery.survey(store)).charges
    return one


async def test_only_the_owner_arms_and_a_change_of_hands_disarms(opened):
    async with opened() as store:
        assert not await recovery.arm(store, "mail", "first", 10)
        await armed(store)
        assert not await recovery.arm(store, "mail", "second", 10)
        await recovery.disarm(store, "mail", "second")
        assert (await charge(store)).armed == recovery.Armed("first", 10)
        await owners.claim(store, "mail", Claim("second", former="first"))
        assert (await recovery.survey(store)).charges == []
        assert await recovery.arm(store, "mail", "second", 10)
        await recovery.disarm(store, "mail", "second")
        assert (await recovery.survey(store)).charges == []


async def test_a_pod_is_not_claimed_while_its_host_is_there(opened):
    async with opened() as store:
        lease = await armed(store)
        one = await charge(store)
        assert not await recovery.claim(store, one, "second", "000001-a.pod", 10)
        await store.revoke(lease)
        assert await recovery.claim(store, one, "second", "000001-a.pod", 20)
        assert (await owners.of_all(store))["mail"].host == "second"
        claimed = await charge(store)
        assert claimed.armed == recovery.Armed("second", 20, "000001-a.pod")
        assert claimed.unborn


async def test_what_cannot_be_understood_is_nobodys(opened):
    async with opened() as store:
        await armed(store)
        for pod in ("..", "UPPER", "broken"):
            changes = [Put(f"/armed/first/{pod}", b"{}"), Put(f"/pods/{pod}/owner", b"[")]
            await store.apply([], [*changes, Put("/armed/pods", b"")])
        assert (await charge(store)).pod == "mail"


async def test_a_checkpoint_is_used_once(opened):
    async with opened() as store:
        await store.revoke(await armed(store))
        assert await recovery.claim(store, await charge(store), "second", "000001-a.pod", 10)
        await recovery.consume(store, "mail", "second", "000001-a.pod")
        again = await charge(store)
        assert (again.consumed, again.unborn) == ({"000001-a.pod"}, False)
        with pytest.raises(Refused, match="was used already"):
            await recovery.consume(store, "mail", "second", "000001-a.pod")
        assert not await recovery.claim(store, again, "third", "000001-a.pod", 10)
        assert await recovery.claim(store, again, "third", "000002-a.pod", 10)


async def test_a_host_that_dies_before_the_pod_lives_has_used_nothing_up(opened):
    async with opened() as store:
        await store.revoke(await armed(store))
        assert await recovery.claim(store, await charge(store), "second", "000001-a.pod", 10)
        again = await charge(store)
        assert recovery.newest({1: "000001-a.pod"}, again.consumed) == "000001-a.pod"
        assert await recovery.claim(store, again, "third", "000001-a.pod", 10)
        with pytest.raises(Refused, match="third has it now"):
            await recovery.consume(store, "mail", "second", "000001-a.pod")
        await recovery.consume(store, "mail", "third", "000001-a.pod")


async def test_what_is_consumed_first_is_not_claimed(opened):
    async with opened() as store:
        await store.revoke(await armed(store))
        assert await recovery.claim(store, await charge(store), "second", "000001-a.pod", 10)
        seen = await charge(store)
        await recovery.consume(store, "mail", "second", "000001-a.pod")
        assert not await recovery.claim(store, seen, "third", "000001-a.pod", 10)


async def test_the_host_itself_may_be_first(opened):
    async with opened() as store:
        await armed(store)
        one = await charge(store)
        assert await recovery.claim(store, one, "first", "000001-a.pod", 10)
        assert not await recovery.claim(store, one, "first", "000002-a.pod", 10)
        assert (await owners.of_all(store))["mail"].host == "first"


async def test_of_many_that_claim_at_once_one_restarts_it(opened):
    had = []
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened()) for _ in range(4)]
        await stores[0].revoke(await armed(stores[0]))
        one = await charge(stores[0])
        async with trio.open_nursery() as nursery:

            async def claim(store, who):
                if await recovery.claim(store, one, who, "000001-a.pod", 10):
                    had.append(who)

            for number, store in enumerate(stores):
                nursery.start_soon(claim, store, f"host{number}")
        assert had == [(await owners.of_all(stores[0]))["mail"].host]


async def test_who_is_due(opened):
    """After the lease and half of it, not while the host reboots, the least busy host first."""
    async with opened() as store:
        lease = await armed(store)
        for name in ("second", "third"):
            other = await store.grant(600)
            pods = ["one"] if name == "second" else []
            await members.announce(store, replace(FIRST, name=name, pods=pods), other.id)
        second, third = recovery.Patience("second"), recovery.Patience("third")
        assert third.due(await recovery.survey(store), 0) == []
        await store.revoke(lease)
        gone = await recovery.survey(store)
        assert third.due(gone, 10) == second.due(gone, 10) == []
        assert third.due(gone, 14.9) == []
        assert [one.pod for one in third.due(gone, 15)] == ["mail"]
        assert second.due(gone, 15) == []
        assert [one.pod for one in second.due(gone, 20)] == ["mail"]
        assert recovery.Patience("first").due(gone, 99) == []
        await store.apply(
            [], [Put("/slots/web", b'[{"id":"first","since":"2026-11-27T00:00:00Z"}]')]
        )
        assert third.due(await recovery.survey(store), 99) == []
        await store.apply([], [Put("/slots/web", b"[]")])
        assert third.due(await recovery.survey(store), 100) == []
