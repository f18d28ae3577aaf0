"""What an agent does for a pod that was claimed and does not run yet."""

import subprocess

import pytest
import trio
import trio.testing

from autopod import hosts
from autopod.errors import Refused
from autopod.fleet import history, keeping, members, owners, recovery, restart, takeover
from autopod.fleet.fence import Fence
from autopod.fleet.keeping import Keeper
from autopod.fleet.owners import Claim
from autopod.fleet.sqlite import Sqlite
from autopod.status import drain
from autopod.status.policy import Fleet
from launcher.lock import locked
from launcher.places import Places
from tests.kernel.fleet.test_slots import FIRST

pytestmark = pytest.mark.needs("root")

CHECKPOINT = "000001-20261128T000000Z.pod"


@pytest.fixture
def restarted(monkeypatch):
    """The pods that a keeper restarts: with nothing, for they never begin to live."""
    found = []

    async def restart(self, pod, number):
        found.append((pod, number))
        self._tries[pod] += 1
        self._restarting.discard(pod)

    monkeypatch.setattr(Keeper, "_restart", restart)
    monkeypatch.setattr(takeover, "are_kept", lambda _places: True)
    monkeypatch.setattr(drain, "running", lambda _places: [])
    return found


@pytest.fixture
async def fleet(places, tmp_path):
    hosts.init(places, "second", "192.0.2.2")
    shared = tmp_path / "shared"
    (shared / "mail.checkpoints").mkdir(parents=True)
    (shared / "mail.checkpoints" / CHECKPOINT).touch()
    places.runs().mkdir(parents=True)
    return Fleet(file=str(tmp_path / "fleet.db"), ttl_s=10, recover=str(shared))


@pytest.fixture
async def store(fleet):
    """Host first had a pod, and has died."""
    store = await Sqlite.open(keeping.Path(fleet.file))
    lease = await store.grant(600)
    await members.announce(store, FIRST, lease.id)
    await owners.claim(store, "mail", Claim("first"))
    assert await recovery.arm(store, "mail", "first", 10)
    await store.revoke(lease.id)
    yield store
    await store.aclose()


async def claim(store):
    [charge] = (await recovery.survey(store)).charges
    assert await recovery.claim(store, charge, "second", CHECKPOINT, 10)


def keeper(places, fleet, nursery):
    fence = Fence(places, fleet.ttl_s, lambda _text: None)
    return Keeper(places, fleet, fence, nursery), fence


async def test_an_agent_that_was_killed_after_it_had_claimed(places, fleet, store, restarted):
    await claim(store)
    async with trio.open_nursery() as nursery:
        agent, fence = keeper(places, fleet, nursery)
        agent._first = False  # an answer that did not come has the same effect
        await agent.beat(store)
    assert restarted == [("mail", 1)]
    assert fence.armed == {"mail"}


async def test_a_pod_that_was_stopped_while_the_agent_was_dead(places, fleet, store, restarted):
    """Its host has not died: an agent of the same boot has armed it."""
    await owners.claim(store, "mail", Claim("second", former="first"))
    assert await recovery.arm(store, "mail", "second", 10)
    former = Fence(places, fleet.ttl_s, lambda _text: None)
    former.arm("mail")
    async with trio.open_nursery() as nursery:
        agent, fence = keeper(places, fleet, nursery)
        await agent.beat(store)
    assert restarted == []
    assert (await recovery.survey(store)).charges == []
    assert fence.armed == set()


async def test_it_is_not_tried_for_ever(places, fleet, store, restarted):
    await claim(store)
    async with trio.open_nursery() as nursery:
        agent, fence = keeper(places, fleet, nursery)
        agent._first = False
        for _ in range(5):
            await agent.beat(store)
            await trio.testing.wait_all_tasks_blocked()
    assert len(restarted) == 3
    assert (await recovery.survey(store)).charges == []
    assert fence.armed == set()


async def test_while_somebody_works_on_it_nothing_is_done(places, fleet, store, restarted):
    await claim(store)
    async with trio.open_nursery() as nursery:
        agent, _ = keeper(places, fleet, nursery)
        with locked(places, "mail"):
            await agent.beat(store)
            assert len((await recovery.survey(store)).charges) == 1
        assert restarted == []
        await agent.beat(store)
        await trio.testing.wait_all_tasks_blocked()
    assert restarted == [("mail", 1)]


async def test_what_has_lived_is_not_restarted_from_the_same(places, fleet, store, restarted):
    await claim(store)
    await recovery.consume(store, "mail", "second", CHECKPOINT)
    async with trio.open_nursery() as nursery:
        agent, _ = keeper(places, fleet, nursery)
        await agent.beat(store)
    assert restarted == []


async def test_a_pod_that_comes_is_seen_at_once(places, fleet, store, restarted, monkeypatch):
    async with trio.open_nursery() as nursery:
        agent, _ = keeper(places, fleet, nursery)
        await agent.beat(store)
        monkeypatch.setattr(drain, "running", lambda _places: ["web"])
        with trio.fail_after(30):
            await agent.news()


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(keeping, "boottime", lambda: clock.now)
    return clock


@pytest.fixture
def fit(monkeypatch):
    """Whatever is looked at can be restarted; tests of the looking are tests/kernel/ckpt's."""

    async def ours(*words):
        assert words[-1] == "--check"
        return subprocess.CompletedProcess(words, 0, b"", b"")

    monkeypatch.setattr(keeping, "_ours", ours)


async def beat(agent, store):
    """A beat, and what it begins."""
    async with trio.open_nursery() as agent._nursery:
        await agent.beat(store)


@pytest.fixture
async def due(places, fleet, store, restarted, clock):
    """A keeper whose turn has come, and has looked; and its fence."""
    agent, fence = keeper(places, fleet, None)
    await beat(agent, store)
    clock.now += 5
    await beat(agent, store)
    return agent, fence


async def owner(store):
    return (await owners.of_all(store))["mail"].host


async def test_a_pod_that_cannot_be_restarted_here_is_left_to_others(due, store, restarted, clock):
    """What is told for an archive: nothing is in it. Its former host still has the pod."""

    async def said():
        told = [one.text for one in await history.read(store)]
        return len([text for text in told if "mail cannot be restarted at second: " in text])

    agent, fence = due
    for _ in range(3):
        await beat(agent, store)
        assert await said() == 1, "it is not looked at again and again"
    clock.now += keeping._AGAIN_S
    await beat(agent, store)
    assert await said() == 2
    assert await owner(store) == "first"
    assert (restarted, fence.armed) == ([], set())


async def test_one_that_can_be_is_claimed_at_the_next_beat(fit, due, store, restarted):
    agent, fence = due
    with trio.fail_after(30):
        await agent.news()
    assert await owner(store) == "first"
    await beat(agent, store)
    assert await owner(store) == "second"
    assert (restarted, fence.armed) == ([("mail", 1)], {"mail"})


async def test_what_was_seen_of_an_older_checkpoint_does_not_count(
    fit, due, store, restarted, fleet
):
    agent, _ = due
    (keeping.Path(fleet.recover) / "mail.checkpoints/000002-20261128T000001Z.pod").touch()
    await beat(agent, store)
    assert restarted == []
    await beat(agent, store)
    await beat(agent, store)
    assert restarted == [("mail", 2)]


async def test_a_host_that_is_back_keeps_its_pod(fit, due, store, restarted):
    agent, _ = due
    await members.announce(store, FIRST, (await store.grant(600)).id)
    await beat(agent, store)
    assert agent._fit == {}
    assert await owner(store) == "first"
    assert restarted == []


def test_a_pod_needs_room():
    restart._check_room(1 << 20)
    with pytest.raises(Refused, match=r"\d+ MiB are free, 1073741824 MiB needed"):
        restart._check_room(1 << 50)


def test_a_pods_files_need_room(tmp_path):
    places = Places(tmp_path)
    restart._check_disk(places, 1 << 20)
    with pytest.raises(Refused, match=r"\d+ MiB are free in .*: too little for the files"):
        restart._check_disk(places, 1 << 60)
