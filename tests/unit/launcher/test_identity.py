import ipaddress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from launcher.config import Network, PodConfig
from launcher.identity import Identity, identity
from launcher.places import Places

HOST = Places(Path("/"))
OTHER = Places(Path("/elsewhere"))
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)


def test_as_configured():
    network = Network(address="10.7.0.9/24", gateway="10.7.0.254", mac="02:00:00:00:00:09")

    found = identity(HOST, PodConfig(name="mail", network=network))

    assert found == Identity(
        bridge="autopod0",
        port=found.port,
        address="10.7.0.9/24",
        gateway="10.7.0.254/24",
        mac="02:00:00:00:00:09",
    )


def test_none():
    assert identity(HOST, PodConfig(name="mail", network=Network(mode="none"))) is None


@given(NAMES)
def test_what_follows_from_the_name(name):
    config = PodConfig(name=name)
    here, there = identity(HOST, config), identity(OTHER, config)

    assert here == identity(HOST, config)
    assert {here.mac, here.port, here.bridge}.isdisjoint({there.mac, there.port, there.bridge})
    for found in (here, there):
        assert max(len(found.bridge), len(found.port)) <= 15  # IFNAMSIZ, with its null byte, is 16
        assert int(found.mac[:2], 16) & 3 == 2  # locally administered, unicast
        assert found.gateway == "10.98.0.1/16"
        address = ipaddress.IPv4Interface(found.address)
        assert address.ip in ipaddress.IPv4Network("10.98.0.0/16")
        assert 2 <= address.ip.packed[3] <= 253
