"""Who has a pod, on stores of both kinds."""

import contextlib

import pytest
import trio

from autopod.errors import Refused
from autopod.fleet import owners
from autopod.fleet.owners import Claim

pytestmark = pytest.mark.slow


async def test_one_host_has_a_pod(opened):
    async with opened() as store:
        token = await owners.claim(store, "mail", Claim("a"))
        assert await owners.claim(store, "mail", Claim("a")) == token
        with pytest.raises(Refused, match="host a has it") as said:
            await owners.claim(store, "mail", Claim("b"))
        assert "--from" in said.value.hint
        with pytest.raises(Refused):
            await owners.claim(store, "mail", Claim("b", former="c"))
        assert await owners.claim(store, "mail", Claim("b", former="a")) > token
        with pytest.raises(Refused):
            await owners.disown(store, "mail", "a")
        await owners.disown(store, "mail", "b")
        assert await owners.of_all(store) == {}
        assert await owners.claim(store, "mail", Claim("c"))
        assert (await owners.of_all(store))["mail"].host == "c"
        with pytest.raises(ValueError, match="cannot name a pod"):
            await owners.claim(store, "../x", Claim("c"))


async def test_who_was_promised_that_a_session_is_over_takes_the_pod_back(opened):
    async with opened() as store:
        await owners.claim(store, "mail", Claim("a"))
        await owners.claim(store, "mail", Claim("b", former="a", session="s1"))
        with pytest.raises(Refused):
            await owners.claim(store, "mail", Claim("a"))
        with pytest.raises(Refused):
            await owners.claim(store, "mail", Claim("a", returned="s2"))
        back = await owners.claim(store, "mail", Claim("a", returned="s1"))
        # A hand-over that is on its way compares with what was there before that.
        assert await owners.claim(store, "mail", Claim("a", returned="s1")) > back


async def test_of_many_that_claim_a_pod_at_once_one_gets_it(opened):
    had = []

    async def claim(store, who):
        with contextlib.suppress(Refused):
            await owners.claim(store, "mail", Claim(who))
            had.append(who)

    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened()) for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for number, store in enumerate(stores):
                nursery.start_soon(claim, store, f"host{number}")
        assert had == [(await owners.of_all(stores[0]))["mail"].host]
