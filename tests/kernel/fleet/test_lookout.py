"""Hosts that have died are noticed: by all in a small fleet, by a few in one of many hosts."""

import pytest
from msgspec.structs import replace

from autopod.fleet import members, owners, recovery
from autopod.fleet.lookout import LOOKERS, Lookout
from autopod.fleet.owners import Claim
from autopod.fleet.store import Put
from tests.kernel.fleet.test_recovery import armed
from tests.kernel.fleet.test_slots import FIRST

pytestmark = pytest.mark.slow


def draws(*numbers):
    turn = iter(numbers)
    return Lookout(lambda: next(turn))


async def crowd(store, count):
    """Let there be so many members more."""
    lease = await store.grant(600)
    for at in range(count):
        await members.announce(store, replace(FIRST, name=f"other{at:02}"), lease.id)


async def test_a_host_that_is_away_is_looked_at_until_it_is_back(opened):
    async with opened() as store:
        lease, lookout = await armed(store), Lookout()
        assert (await lookout.look(store)).charges == []
        await store.revoke(lease)
        found = await lookout.look(store)
        assert found == await recovery.survey(store)
        assert [one.pod for one in found.charges] == ["mail"]
        await members.announce(store, FIRST, (await store.grant(600)).id)
        assert (await lookout.look(store)).charges == []


async def test_in_a_small_fleet_all_look_and_know_the_members(opened):
    async with opened() as store:
        await store.revoke(await armed(store))
        await crowd(store, 2)
        found = await draws(0.999999).look(store)
        assert [one.name for one in found.members] == ["other00", "other01"]


async def test_of_many_hosts_some_look_and_go_on_with_what_they_have_noticed(opened):
    async with opened() as store:
        await store.revoke(await armed(store))
        await crowd(store, 2 * LOOKERS)
        assert (await draws(0.5).look(store)).charges == []
        lookout = draws(0.49, 0.5, 0.5)
        for _ in range(2):
            found = await lookout.look(store)
            assert [one.pod for one in found.charges] == ["mail"]
            assert found.members == []
        patience = recovery.Patience("other05")
        assert patience.due(found, 0) == []
        assert [one.pod for one in patience.due(found, 5)] == ["mail"]
        await owners.claim(store, "mail", Claim("other01", former="first"))
        assert (await lookout.look(store)).charges == []


async def test_who_has_no_armed_pods_is_not_looked_at_for_ever(opened):
    async with opened() as store:
        lease, lookout = await armed(store), Lookout()
        await recovery.disarm(store, "mail", "first")
        assert await store.count(recovery.GUARDED) == 1
        await store.revoke(lease)
        assert (await lookout.look(store)).charges == []
        assert await store.keys(recovery.GUARDED) == []
        assert await recovery.arm(store, "mail", "first", 10)
        assert [one.pod for one in (await lookout.look(store)).charges] == ["mail"]


async def test_what_cannot_be_understood_is_left_as_it_is(opened):
    async with opened() as store:
        await store.apply([], [Put("/guarded/first", b""), Put("/armed/first/UPPER", b"{}")])
        assert (await Lookout().look(store)).charges == []
        assert await store.keys(recovery.GUARDED) == ["/guarded/first"]


async def test_names_are_told_and_counted(opened):
    async with opened() as store:
        names = [f"/many/{number:03}" for number in range(150)]
        for at in range(0, 150, 50):
            await store.apply([], [Put(name, b"x") for name in names[at : at + 50]])
        await store.apply([], [Put("/manx", b""), Put("/man", b""), Put("/many%", b"")])
        assert await store.keys("/many/") == names
        assert (await store.count("/many/"), await store.count("/none")) == (150, 0)
        assert await store.keys("/none") == []
