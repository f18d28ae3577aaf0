"""A host keeps its lease, and says of itself what has changed."""

import contextlib

import pytest
import trio
from msgspec.structs import replace

from autopod.fleet import agent, members
from autopod.fleet.fence import boottime
from autopod.fleet.sqlite import Sqlite
from autopod.fleet.store import Delete, LeaseGone, Unanswered
from autopod.status.policy import Fleet
from tests.kernel.fleet.test_slots import FIRST

pytestmark = pytest.mark.slow


class Silent:
    """A store that does not answer some renewals."""

    def __init__(self, store, silent):
        self._store, self._silent, self.asked = store, silent, 0

    async def renew(self, lease):
        self.asked += 1
        if self.asked in self._silent:
            raise Unanswered("no answer")
        return await self._store.renew(lease)


class Fence:
    def __init__(self):
        self.good_until, self.extended = 0, trio.Event()

    def extend(self, good_until):
        assert good_until > self.good_until
        self.good_until = good_until
        self.extended.set()


@pytest.fixture
async def file(tmp_path):
    async with contextlib.aclosing(await Sqlite.open(tmp_path / "fleet.db")) as store:
        yield store


async def test_a_lease_is_not_given_up_for_want_of_an_answer(file, capsys):
    fleet, fence = Fleet(file="/fleet.db", ttl_s=5), Fence()
    lease, silent = (await file.grant(5)).id, Silent(file, {1, 2})

    async def ends():
        await fence.extended.wait()
        assert silent.asked >= 3
        assert boottime() < fence.good_until < boottime() + 5
        await file.revoke(lease)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends)
            failed = await agent._renew(fleet, silent, fence, lease, 0.01)
    assert isinstance(failed, LeaseGone)
    assert capsys.readouterr().err.count("no answer") == 1


async def test_what_has_not_changed_is_not_said_again(file):
    lease, said = (await file.grant(60)).id, members.Announced()
    await said.announce(file, FIRST, lease)
    before = await file.get("/members/first")
    await said.announce(file, replace(FIRST, memory_free=FIRST.memory_free * 15 // 16), lease)
    assert await file.get("/members/first") == before
    await said.announce(file, replace(FIRST, pods=["b"]), lease)
    [there] = await members.read(file)
    assert (there.pods, there.memory_free) == (["b"], FIRST.memory_free)
    await said.announce(file, replace(FIRST, pods=["b"], memory_free=1 << 28), lease)
    assert [one.memory_free for one in await members.read(file)] == [1 << 28]


async def test_what_somebody_took_away_is_said_again_in_time(file):
    lease, said = (await file.grant(60)).id, members.Announced()
    await said.announce(file, FIRST, lease)
    await file.apply([], [Delete("/members/first")])
    for _ in range(members._LOOKED):
        await said.announce(file, FIRST, lease)
    assert await members.read(file) == [FIRST]
