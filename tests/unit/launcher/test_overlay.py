"""The overlay: marks, ways, rules, and that nft(8) understands them."""

import subprocess
from pathlib import Path

import pytest

from launcher import overlay
from launcher.config import Network, PodConfig
from launcher.errors import PodError
from launcher.identity import identity
from launcher.netconfig import Pools
from launcher.overlay import Member, Overlay
from launcher.places import Places

A = Member("a", "192.0.2.1", overlay.mark_of("00000001" + "0" * 56))
B = Member("b", "198.51.100.1", overlay.mark_of("ffffffff" + "0" * 56))


def made(**changes):
    settings = {"vni": 7463, "port": 7463, "mtu": 1450, "gateways": ("10.98.0.1/16", "fd98::1/64")}
    return Overlay(**{"own": A, "members": (B,), **settings, **changes})


def test_a_mark_is_a_positive_number_that_makes_an_address_of_the_hosts_own():
    assert (A.mark, B.mark) == (0x40000001, 0x7FFFFFFF)
    assert (A.mac, B.mac) == ("02:51:40:00:00:01", "02:51:7f:ff:ff:ff")


def test_ways_are_the_same_whoever_looks():
    there = made(own=B, members=(A,))
    assert overlay.paths(made()) == overlay.paths(there)
    hops = [path.next_hop for path in overlay.paths(there)]
    assert len(set(hops)) == 2
    more = made(members=(B, Member("c", "203.0.113.1", A.mark + 1)))
    assert set(hops) < {path.next_hop for path in overlay.paths(more)}
    assert [path.next_hop6 for path in overlay.paths(there)] == ["fe80::4000:1", "fe80::7fff:ffff"]


def test_many_members_have_next_hops_of_their_own():
    members = tuple(Member(str(n), "192.0.2.9", 7 + (n << 8) * 127) for n in range(2000))
    hops = {path.next_hop for path in overlay.paths(made(members=members))}
    assert len(hops) == 2001
    assert {"169.254.1.7", "169.254.1.8"} <= hops


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": (B, Member("c", "203.0.113.1", B.mark))}, "hosts b and c have keys"),
        ({"own": Member("a", "192.0.2.9", 7)}, r"192\.0\.2\.9 is not an address of this host"),
        ({"mtu": 1451}, r"192\.0\.2\.1 carries packets of 1500 bytes, not 1451"),
    ],
)
def test_what_cannot_be(changes, message):
    def check(one):
        overlay.check_marks(one)
        overlay.check_address(one, {"192.0.2.1": 1500})

    check(made())
    with pytest.raises(PodError, match=message):
        check(made(**changes))


def test_it_is_read_as_it_was_written(tmp_path):
    places = Places(tmp_path)
    assert overlay.own_mark(places) == 0
    overlay.write(places, made())
    assert overlay.read(places) == made()
    assert overlay.own_mark(places) == A.mark
    places.overlay().write_text("{}")
    with pytest.raises(PodError, match=r"overlay\.json: Object missing required field"):
        overlay.read(places)
    overlay.write(places, None)
    assert overlay.read(places) is None


@pytest.mark.needs("root", "namespaces")
@pytest.mark.parametrize(
    "one",
    [
        made(),
        made(members=()),
        made(gateways=()),
        made(own=Member("a", "fd07::1", 7), members=(Member("b", "fd07::2", 8),)),
    ],
    ids=["both", "alone", "no addresses", "IPv6"],
)
def test_nft_understands_the_rules(one):
    config = PodConfig(name="pod", network=Network(address="10.99.0.9/24"))
    pod = identity(Places(Path("/")), config, Pools(), None, {})
    own = overlay.gateways(one, [pod])
    assert "10.99.0.1" in own
    texts = [
        overlay.host_rules("autopod_overlay", "autopod-vx0", one, own, "fe80::1"),
        overlay.pod_rules("autopod_paths", one),
        overlay.pod_rules("autopod_paths", None),
    ]
    for text in texts:
        run = subprocess.run(
            ["nft", "--check", "-f", "-"], input=text, capture_output=True, text=True, check=False
        )
        assert run.stderr == ""
    assert f"saddr != {{ {one.members[0].address if one.members else '192.0.2.1'} }}" in texts[0]
