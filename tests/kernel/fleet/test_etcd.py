"""What is etcd's own: members that die, answers that are lost, users, certificates."""

import contextlib
import os
from functools import partial

import pytest
import trio
from msgspec.structs import replace

from autopod.fleet import store as stores
from autopod.fleet.etcd import Etcd
from autopod.fleet.gateway import _NotNow
from autopod.fleet.store import Compare, FleetError, Forgotten, Put, Unanswered
from tests.kernel.fleet import etcd

pytestmark = [pytest.mark.needs("etcd"), pytest.mark.slow]


@pytest.fixture
def fragile(tmp_path):
    """A cluster whose members may die."""
    with etcd.running(tmp_path) as cluster:
        yield cluster


@contextlib.asynccontextmanager
async def opened(cluster, root="/etcd", **access):
    async with contextlib.aclosing(Etcd(cluster.access(**access), root)) as store:
        yield store


class Unreliable:
    """Stands between a store and the network, and loses what it is told to."""

    def __init__(self, store):
        self._gateway = store._gateway
        self._post, self._gateway._post = self._gateway._post, self.post
        self.lose = None  # "request", "answer" or "late"
        self.times, self.late = 1, []

    async def post(self, method, *rest):
        lose = self.lose if method == "kv/txn" else None
        if lose is None:
            return await self._post(method, *rest)
        self.times -= 1
        if self.times <= 0:
            self.lose, self.times = None, 1
        if lose == "answer":
            await self._post(method, *rest)
        elif lose == "late":
            self.late.append((method, *rest))
        raise _NotNow("lost")

    async def deliver(self):
        """Let a request that seemed to be lost arrive."""
        for arguments in self.late:
            await self._post(*arguments)
        self.late = []


@pytest.mark.parametrize("lose", ["request", "answer"])
async def test_a_transaction_that_seemed_lost_is_done_once(cluster, lose):
    async with opened(cluster, f"/lost-{lose}") as store, opened(cluster, f"/lost-{lose}") as other:
        network = Unreliable(store)
        for at in range(3):
            network.lose = lose
            entry = await store.get("/sum")
            revision = entry.revision if entry else 0
            done = await store.apply([Compare("/sum", revision)], [Put("/sum", b"%d" % at)])
            assert (await other.get("/sum")).revision == done
        events = []
        async with trio.open_nursery() as nursery:
            watch = stores.watch(other, nursery, "/sum", done - 1000 if done > 1000 else 0)
            with trio.fail_after(60):
                events = [(await anext(watch)).entry.value for _ in range(3)]
            await other.apply([], [Put("/sum", b"end")])
            assert (await anext(watch)).entry.value == b"end"
            nursery.cancel_scope.cancel()
        assert events == [b"0", b"1", b"2"]


async def test_a_transaction_that_was_refused_is_not_done_later(cluster):
    """It is on its way when it is asked for again, cannot be done then, and arrives after that."""
    async with opened(cluster, "/late") as store, opened(cluster, "/late") as other:
        network = Unreliable(store)
        await store.apply([], [Put("/claimed", b"other's")])
        network.lose = "late"
        assert await store.apply([Compare("/claimed", 0)], [Put("/claimed", b"mine")]) is None
        claimed = await other.get("/claimed")
        await other.apply([Compare("/claimed", claimed.revision)], [stores.Delete("/claimed")])
        await network.deliver()
        assert await other.get("/claimed") is None
        assert await store.apply([Compare("/claimed", 0)], [Put("/claimed", b"mine")])


async def test_what_is_read_after_no_answer_came_stays(cluster):
    async with opened(cluster, "/stays") as store:
        network, access = Unreliable(store), store._gateway._access
        await store.apply([], [Put("/first", b"")])
        network.lose, network.times = "late", 1 << 30
        store._gateway._access = replace(access, patience_s=0.3)
        with pytest.raises(Unanswered):
            await store.apply([], [Put("/second", b"")])
        network.lose, store._gateway._access = None, access
        assert await store.get("/second") is None
        await network.deliver()
        assert await store.get("/second") is None
        assert await store.apply([Compare("/second", 0)], [Put("/second", b"")])


async def test_members_die_and_no_transaction_is_lost_or_done_twice(fragile):
    told, left = {}, 120
    turn = trio.Condition()

    async def work(worker):
        nonlocal left
        async with opened(fragile) as store:
            while left > 0:
                entry = await store.get("/sum")
                value, revision = (int(entry.value), entry.revision) if entry else (0, 0)
                key = f"/done/{worker}-{left:04}-{value}"
                changes = [Put("/sum", b"%d" % (value + 1)), Put(key, b"")]
                done = await store.apply([Compare("/sum", revision)], changes)
                assert key not in told or told[key] is None
                told[key] = done
                async with turn:
                    left -= bool(done)
                    turn.notify_all()

    async def reached(number):
        async with turn:
            while left > number:
                await turn.wait()

    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            for worker in range(4):
                nursery.start_soon(work, worker)
            for number in (100, 60):
                await reached(number)
                dead = await fragile.leader()
                fragile.kill(dead)
                await reached(number - 20)
                fragile.start(dead)
        async with opened(fragile) as store:
            done = {one.key: one.revision for one in (await store.scan("/done/")).entries}
            assert done == {key: revision for key, revision in told.items() if revision}
            assert int((await store.get("/sum")).value) == len(done) >= 120


async def test_answers_that_are_late_are_waited_for(cluster, monkeypatch):
    """Later than one is waited for at first, as from members that have too much to do."""
    monkeypatch.setattr("autopod.fleet.gateway._REQUEST_S", 0.2)

    async def serve(endpoint, client):
        server = await trio.open_tcp_stream("127.0.0.1", int(endpoint.rpartition(":")[2]))
        async with client, server, trio.open_nursery() as nursery:

            async def answer():
                async for data in server:
                    await trio.sleep(0.3)
                    await client.send_all(data)

            nursery.start_soon(answer)
            async for data in client:
                await server.send_all(data)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        slow = []
        for endpoint in cluster.clients:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            slow.append(f"https://127.0.0.1:{listener.socket.getsockname()[1]}")
            nursery.start_soon(trio.serve_listeners, partial(serve, endpoint), [listener])
        async with opened(cluster, "/slow", endpoints=slow, patience_s=30.0) as store:
            assert await store.apply([], [Put("/a", b"1")])
            assert (await store.get("/a")).value == b"1"
        nursery.cancel_scope.cancel()


async def test_a_watch_goes_on_when_its_member_dies(fragile):
    async with opened(fragile) as store, trio.open_nursery() as nursery:
        begin = await store.apply([], [Put("/w/begin", b"")])
        async with opened(fragile) as watching:
            events = stores.watch(watching, nursery, "/w/", begin)
            await store.apply([], [Put("/w/0", b"")])
            with trio.fail_after(120):
                assert (await anext(events)).key == "/w/0"
                fragile.kill(0)  # which is asked first
                for number in range(1, 6):
                    await store.apply([], [Put(f"/w/{number}", b"")])
                assert [(await anext(events)).key for _ in range(5)] == [
                    f"/w/{number}" for number in range(1, 6)
                ]
            nursery.cancel_scope.cancel()


async def test_without_a_majority_it_is_said_and_after_that_it_goes_on(fragile):
    async with opened(fragile, patience_s=3.0) as store, opened(fragile) as patient:
        revision = await store.apply([], [Put("/a", b"1")])
        fragile.kill(0)
        fragile.kill(1)
        for ask in (store.get("/a"), store.scan("/a"), store.grant(5)):
            with pytest.raises(FleetError) as said:
                await ask
            assert "a majority" in said.value.hint
        with pytest.raises(Unanswered, match=r"etcd at https://127.0.0.1:"):
            await store.apply([Compare("/a", revision)], [Put("/a", b"2")])
        fragile.start(0)
        entry = await patient.get("/a")
        assert entry.value in {b"1", b"2"}
        with trio.fail_after(120):
            while True:
                with contextlib.suppress(FleetError):
                    entry = await store.get("/a")
                    assert await store.apply([Compare("/a", entry.revision)], [Put("/a", b"3")])
                    break


async def test_a_user_does_what_its_role_may_and_signs_in_again(fragile):
    for method, request in (
        ("auth/user/add", {"name": "root", "password": "r"}),
        ("auth/user/grant", {"user": "root", "role": "root"}),
        ("auth/role/add", {"name": "autopod"}),
        (
            "auth/role/grant",
            {
                "name": "autopod",
                "perm": {"permType": "READWRITE", "key": b"/autopod/", "range_end": b"/autopod0"},
            },
        ),
        ("auth/user/add", {"name": "host", "password": "secret"}),
        ("auth/user/grant", {"user": "host", "role": "autopod"}),
        ("auth/enable", {}),
    ):
        await fragile.call(method, request)
    host = {"user": "host", "password": "secret"}
    async with opened(fragile, "/autopod", **host) as store:
        lease = await store.grant(600)
        assert await store.apply([], [Put("/a", b"1", lease.id)])
        assert await store.renew(lease.id)
        for number in range(3):  # which forget all tokens
            fragile.kill(number)
        for number in range(3):
            fragile.start(number)
        assert (await store.get("/a")).value == b"1"
        async with opened(fragile, "/elsewhere", **host) as elsewhere:
            with pytest.raises(FleetError, match="permission denied") as said:
                await elsewhere.get("/a")
            assert "role" in said.value.hint
            async with trio.open_nursery() as nursery:
                with pytest.raises(FleetError, match=r"permission"), trio.fail_after(60):
                    await anext(stores.watch(elsewhere, nursery, "/a", 1))
    for wrong in ({"user": "host", "password": "wrong"}, {}):
        async with opened(fragile, "/autopod", **wrong) as store:
            with pytest.raises(FleetError, match="etcd: ") as said:
                await store.get("/a")
            assert "fleet.user" in said.value.hint


async def test_who_has_no_certificate_of_the_cluster_is_not_answered(cluster, tmp_path):
    async with opened(cluster, certificate=None, key=None, patience_s=0.5) as store:
        with pytest.raises(FleetError, match="etcd at"):
            await store.get("/a")
    stranger = etcd.Authority(tmp_path)
    async with opened(cluster, ca=os.fspath(stranger.ca), patience_s=0.5) as store:
        with pytest.raises(FleetError, match=r"(?i)certificate"):
            await store.get("/a")
    with pytest.raises(FleetError, match=r"none\.pem"):
        Etcd(cluster.access(ca=os.fspath(tmp_path / "none.pem")))


async def test_a_watch_of_what_was_compacted_says_so(cluster):
    async with opened(cluster, "/compacted") as store, trio.open_nursery() as nursery:
        begin = await store.apply([], [Put("/a", b"1")])
        last = await store.apply([], [Put("/a", b"2")])
        await cluster.call("kv/compaction", {"revision": last})
        with pytest.raises(Forgotten), trio.fail_after(60):
            await anext(stores.watch(store, nursery, "/a", begin - 1))


async def test_more_entries_than_one_answer_holds(cluster):
    async with opened(cluster, "/paged") as store:
        names = [f"/many/{number:04}" for number in range(1050)]
        for at in range(0, len(names), 100):
            await store.apply([], [Put(name, b"") for name in names[at : at + 100]])
        assert [entry.key for entry in (await store.scan("/many/")).entries] == names
