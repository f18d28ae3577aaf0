"""What a fleet decides by itself: slots, requests, configuration."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autopod.fleet import fence, members, place, recovery, slots, store
from autopod.fleet.members import Member
from autopod.fleet.place import Need
from autopod.fleet.slots import Holder
from autopod.status.policy import Policy
from launcher import toml
from launcher.toml import ConfigError

NOW = datetime(2026, 11, 27, tzinfo=UTC)
OWNER = b'{"host":"a","since":"2026-11-27T00:00:00Z"}'
ARMED = b'{"host":"a","ttl_s":60}'
NAMES = st.sampled_from("abcdef")


@given(st.lists(st.tuples(st.booleans(), NAMES)), st.integers(0, 4))
def test_there_are_never_more_holders_than_slots_and_each_once(asked, limit):
    holders, have = [], set()
    for takes, who in asked:
        if takes:
            after = slots.with_one_more(holders, who, limit, NOW)
            assert (after is None) == (who not in have and len(have) >= limit)
            have |= {who} if after is not None else set()
            holders = holders if after is None else after
        else:
            holders = slots.without(holders, who)
            have -= {who}
        assert sorted(one.id for one in holders) == sorted(have)


def test_who_has_a_slot_keeps_it_when_there_are_fewer():
    holders = [Holder("a", NOW), Holder("b", NOW)]
    assert slots.with_one_more(holders, "b", 1, NOW) == holders
    assert slots.with_one_more(holders, "c", 1, NOW) is None


def test_free_memory():
    assert members.free_memory("MemTotal: 2 kB\nMemAvailable:  1048577 kB\n") == 1 << 30
    assert members.free_memory("") == 0


MEMBER = Member(
    "b", "192.0.2.2:7463", "fb", "default", 1, "6.1", "x86_64", ["avx", "sse2"], 8 << 30, ["other"],
    ["l1"],
)  # fmt: skip
NEED = Need("mail", "x86_64", ["sse2"], 1 << 30, ["l1", "l2"])
KNOWN = {"b": "fb", "c": "fc", "d": "fd"}


def placed(*members, need=NEED, known=KNOWN, busy=(), coming=()):
    return place.place(need, members, known=known, busy=busy, coming=coming)


@pytest.mark.parametrize(
    ("member", "arguments", "says"),
    [
        ({}, {"known": {}}, "does not know it"),
        ({"fingerprint": "fx"}, {}, "another one by that name"),
        ({}, {"busy": ["b"]}, "has a reboot slot"),
        ({"machine": "aarch64"}, {}, "it is aarch64, not x86_64"),
        ({"cpu_features": ["avx"]}, {}, "its CPU lacks sse2"),
        ({"memory_free": 1 << 29}, {}, "512 MiB are free, 1024 MiB needed"),
        ({"memory_free": 3 << 29}, {"coming": ["b"]}, "512 MiB are free"),
        ({"pods": ["mail"]}, {}, "a pod of that name runs there"),
    ],
)
def test_where_a_pod_cannot_go(member, arguments, says):
    [found] = placed(replace(MEMBER, **member), **arguments)
    assert not found.possible
    assert says in "; ".join(found.reasons)


@pytest.mark.parametrize(
    "worse",
    [
        {"layers": []},
        {"memory_free": 4 << 30},
        {"pods": ["one", "two"]},
        {"machine": "aarch64", "pods": [], "layers": ["l1", "l2"]},
    ],
)
def test_the_better_host_comes_first(worse):
    other = replace(MEMBER, name="c", fingerprint="fc")
    for both in ((replace(MEMBER, **worse), other), (other, replace(MEMBER, **worse))):
        assert [one.host for one in placed(*both)] == ["c", "b"]


def test_pods_that_go_together_are_spread():
    twins = MEMBER, replace(MEMBER, name="c", fingerprint="fc")
    assert placed(*twins)[0].host == "b"
    assert placed(*twins, coming=["b"])[0].host == "c"
    assert placed() == []


@pytest.mark.parametrize(
    ("now", "what"), [(0, "run"), (79.9, "run"), (80, "freeze"), (89.9, "freeze"), (90, "kill")]
)
def test_pods_are_ended_before_their_lease(now, what):
    assert fence.stage(now, 100, 60) == what


def test_a_checkpoint_older_than_one_that_was_used_is_not_taken():
    names = {1: "a", 2: "b"}
    assert recovery.newest(names, set()) == "b"
    assert recovery.newest(names, {"a"}) == "b"
    assert recovery.newest(names, {"b"}) is None
    assert recovery.newest({}, set()) is None


def test_pods_are_surveyed_in_one_go():
    """Of ten thousand, which with a second loop inside would be minutes."""
    names = ["UPPER", *map(str, range(10_000))]
    values = {"consumed/000001-a.pod": b"a", "owner": OWNER}
    entries = [store.Entry(f"/pods/{n}/{what}", values[what], 7) for n in names for what in values]
    entries += [store.Entry(f"/armed/a/{name}", ARMED, 8) for name in [*names, "half"]]
    begin = time.process_time()
    found = recovery.charges([*entries, store.Entry("/armed/b/0", ARMED, 1)])
    assert time.process_time() - begin < 10
    assert [one.pod for one in found] == sorted(map(str, range(10_000)))
    assert (found[0].owner.host, found[0].armed) == ("a", recovery.Armed("a", 60))
    assert {one.consumed for one in found} == {frozenset(["000001-a.pod"])}


@pytest.mark.parametrize("key", ["", "a", "/", "//", "/.a", "/a\n", "/A", "/a" * 300])
def test_what_cannot_name_an_entry(key):
    with pytest.raises(ValueError, match="cannot name"):
        store.check_key(key)


HOSTS = st.lists(
    st.builds(
        replace,
        st.just(MEMBER),
        name=NAMES,
        machine=st.sampled_from(["x86_64", "aarch64"]),
        memory_free=st.integers(0, 4).map(lambda gib: gib << 30),
        pods=st.lists(NAMES, unique=True),
        layers=st.lists(st.sampled_from(["l1", "l2"]), unique=True),
    ),
    unique_by=lambda one: one.name,
)


@settings(max_examples=40)
@given(HOSTS, st.lists(NAMES, unique=True), st.sets(NAMES), st.lists(NAMES))
def test_pods_that_leave_together_are_placed_one_after_the_other(hosts, names, busy, coming):
    needs = [replace(NEED, pod=name, memory=(at + 1) << 29) for at, name in enumerate(names)]
    known, sent = dict.fromkeys("abcde", "fb"), list(coming)
    planned = place.plan(needs, hosts, known=known, busy=busy, coming=coming)
    assert list(planned) == names
    for need in needs:
        found = place.place(need, hosts, known=known, busy=busy, coming=sent)
        assert planned[need.pod] == [one for one in found if one.possible][: place.BEST]
        sent += [one.host for one in planned[need.pod][:1]]


def test_of_many_hosts_the_best_are_planned():
    hosts = [replace(MEMBER, name=f"h{at:03}", memory_free=at << 30) for at in range(200)]
    known = {one.name: one.fingerprint for one in hosts}
    found = place.plan([NEED], hosts, known=known, busy=["h199"])["mail"]
    assert [one.host for one in found] == [f"h{at:03}" for at in range(198, 198 - place.BEST, -1)]


def fleet(text):
    return toml.decode(f"[fleet]\n{text}".encode(), Path("autopod.toml"), Policy).fleet


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "one of both"),
        ('endpoints = ["https://a:1"]\nfile = "/x"', "one of both"),
        ('endpoints = ["http://192.0.2.1:2379"]', "to this host only"),
        ('endpoints = ["https://a:1/path"]', "HOST:PORT"),
        ('file = "/x"\nuser = "u"', "password_file"),
        ('file = "/x"\ncertificate = "c"', "goes with key"),
        ('file = "/x"\ngroup = "a b"', "group"),
        ('file = "/x"\nslots = -1', "use 0 to 1000"),
        ('file = "/x"\nttl_s = 1', "use 5 to 3600"),
        ('file = "/x"\nroot = "pods"', "use /NAME"),
        ('file = "/x"\nrecover = "x"', "whole path"),
        ('file = "/x"\nrecover = "/x"\nttl_s = 9', "ttl_s of 10"),
        ('file = "/x"\nslot = 1', "no such key"),
    ],
)
def test_configuration_that_is_wrong(text, says):
    with pytest.raises(ConfigError, match=says):
        fleet(text)


def test_configuration():
    assert fleet('endpoints = ["https://[2001:db8::1]:2379", "http://127.0.0.1:2379"]').slots == 1
    assert fleet('file = "/x"\nslots = 0').file == "/x"
