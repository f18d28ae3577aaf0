import ipaddress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import config
from launcher.config import Network, PodConfig
from launcher.errors import PodError
from launcher.identity import Identity, adopted, identity, next_free, pinned
from launcher.netconfig import Pools, Port
from launcher.places import Places

HOST = Places(Path("/"))
OTHER = Places(Path("/elsewhere"))
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
POOLS = Pools(pool="192.0.2.0/28", pool6="fd98::/64")


def of(name="mail", pools=None, kept=None, others=None, places=HOST, **network):
    wanted = PodConfig(name=name, network=Network(**network))
    return identity(places, wanted, pools or Pools(), kept, others or {})


def test_as_configured():
    found = of(
        address="10.7.0.9/24",
        gateway="10.7.0.254",
        address6="fd00:7::9/64",
        mac="02:00:00:00:00:09",
        nat=True,
        publish=("8080:80", "192.0.2.1:53:5353/udp"),
    )

    assert found == Identity(
        bridge="autopod0",
        parent=None,
        port=found.port,
        mac="02:00:00:00:00:09",
        address="10.7.0.9/24",
        gateway="10.7.0.254/24",
        address6="fd00:7::9/64",
        gateway6="fd00:7::1/64",
        nat=True,
        ports=(Port("tcp", None, 8080, 80), Port("udp", "192.0.2.1", 53, 5353)),
    )


def test_macvlan():
    found = of(mode="macvlan", parent="eth1", address="192.0.2.9/24")

    assert (found.bridge, found.parent, found.pairs) == (None, "eth1", [("192.0.2.9/24", None)])


def test_none():
    assert of(mode="none") is None


@given(NAMES)
def test_what_follows_from_the_name(name):
    here, there = of(name), of(name, places=OTHER)

    assert here == of(name)
    assert {here.mac, here.port, here.bridge}.isdisjoint({there.mac, there.port, there.bridge})
    for found in (here, there):
        assert max(len(found.bridge), len(found.port)) <= 15  # IFNAMSIZ, with its null byte, is 16
        assert int(found.mac[:2], 16) & 3 == 2  # locally administered, unicast
        assert found.gateway == "10.98.0.1/16"
        assert found.address6 is None
        number = int(ipaddress.IPv4Interface(found.address).ip)
        assert int(ipaddress.IPv4Address("10.98.0.2")) <= number
        assert number < int(ipaddress.IPv4Address("10.98.255.255"))


@settings(max_examples=20)
@given(st.lists(NAMES, unique=True, min_size=13, max_size=13))
def test_a_pool_is_used_up_to_the_last_address(names):
    """Of 16 addresses the network, the host and the broadcasts have one each."""
    pods = {}
    for name in names:
        pods[name] = of(name, POOLS, others=pods)

    used = {ipaddress.ip_interface(found.address).ip for found in pods.values()}
    assert used == set(list(ipaddress.ip_network(POOLS.pool).hosts())[1:])
    assert len({found.address6 for found in pods.values()}) == 13
    with pytest.raises(PodError, match=r"no address of 192\.0\.2\.0/28 is free"):
        of("one-more", POOLS, others=pods)


def test_what_it_had_it_keeps():
    """Another pool, another name's claim: the pod's addresses are its own for life."""
    first = of(pools=POOLS)

    assert of(kept=first) == first
    assert of(kept=first, address="10.7.0.9/24").address == "10.7.0.9/24"
    assert of(kept=first, address="10.7.0.9/24").mac == first.mac
    assert of(kept=first, mode="macvlan", parent="eth1", address="10.7.0.9/24").address6 is None


@pytest.mark.parametrize(
    ("network", "error"),
    [
        ({"address": "10.7.0.9/16"}, r"address 10\.7\.0\.9 is taken by pod 'other'"),
        ({"address": "10.7.0.254/24"}, r"address 10\.7\.0\.254 is taken by"),
        ({"address6": "fd00:7:0::9/48"}, "address fd00:7::9 is taken by pod 'other'"),
        ({"mac": "02:00:00:00:00:09"}, "MAC address 02:00:00:00:00:09 is taken by pod 'other'"),
        ({"publish": ("8080:80",)}, "port 8080/tcp of the host is published by pod 'other'"),
        ({"publish": ("192.0.2.7:8080:1",)}, "port 192.0.2.7:8080/tcp of the host is published"),
    ],
)
def test_what_another_pod_has_is_refused(network, error):
    other = of(
        "other",
        address="10.7.0.9/24",
        gateway="10.7.0.254",
        address6="fd00:7::9/64",
        mac="02:00:00:00:00:09",
        publish=("8080:80",),
    )

    with pytest.raises(PodError, match=error):
        of(others={"other": other}, **network)

    assert of(others={"other": other}, publish=("8080:80/udp", "8081:80"))


def test_an_address_outside_of_the_pool_is_refused():
    with pytest.raises(PodError, match=r"network\.address = '10\.7\.0\.9/24': is outside of"):
        of(pools=POOLS, address="10.7.0.9/24")
    with pytest.raises(PodError, match=r"network\.address6 = 'fd00::9/64': is outside of"):
        of(pools=POOLS, address6="fd00::9/64")

    assert of(pools=POOLS, mode="macvlan", parent="eth1", address="10.7.0.9/24")


def test_pinned_and_adopted():
    """What an archive says makes the same identity on a host that knows nothing."""
    here = of(pools=POOLS)
    archived = pinned(Network(nat=True), here)

    assert identity(HOST, PodConfig(name="mail", network=archived), Pools(), None, {}) == of(
        pools=POOLS, nat=True
    )
    assert adopted(Network(), archived) == pinned(Network(), here)
    own = Network(address="10.7.0.9/24", nat=True)
    assert adopted(own, archived).address == "10.7.0.9/24"
    assert adopted(own, archived).gateway is None
    assert adopted(own, archived).address6 == here.address6
    assert adopted(own, archived).mac == here.mac
    assert adopted(Network(mode="none"), archived) == Network(mode="none")
    text = config.dump(PodConfig(name="mail", network=archived)).encode()
    assert config.parse(text, "mail", Path("x")).network == archived


def test_the_wish_is_granted():
    assert next_free("10.98.3.7/16", ["10.98.3.8"]) == "10.98.3.7/16"
    assert next_free("10.98.0.10/16", ["10.98.0.10", "10.98.0.11"]) == "10.98.0.12/16"


def test_a_full_network():
    taken = [f"192.0.2.{n}" for n in range(2, 7)]

    assert next_free("192.0.2.4/29", taken[1:]) == "192.0.2.2/29"
    with pytest.raises(PodError, match=r"no address of 192\.0\.2\.0/29 is free"):
        next_free("192.0.2.4/29", taken)
