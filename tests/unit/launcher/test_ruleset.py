"""The packet filter rules, and that nft(8) understands them."""

import subprocess
from pathlib import Path

import pytest

from launcher import ruleset
from launcher.config import Network, PodConfig
from launcher.identity import identity
from launcher.netconfig import Pools
from launcher.places import Places


def pods(**networks):
    found = {}
    for name, network in networks.items():
        config = PodConfig(name=name, network=Network(**network))
        found[name] = identity(Places(Path("/")), config, Pools(), None, found)
    return found


MAIL = {"address": "10.98.0.10/16", "address6": "fd98::10/64"}


def test_without_need_the_table_goes():
    assert not ruleset.needed(pods(mail=MAIL))
    assert ruleset.ruleset("autopod", "autopod0", pods(mail=MAIL)) == (
        "table inet autopod\ndelete table inet autopod\n"
    )


def test_a_connection_that_begins_in_its_middle_is_not_translated():
    """It was brought along from another host, where nobody translated it."""
    text = ruleset.ruleset("autopod", "autopod0", pods(mail={**MAIL, "nat": True}))

    masquerading = [line for line in text.splitlines() if "masquerade" in line]
    assert len(masquerading) == 6
    for line in masquerading:
        assert "ct status dnat" in line or "l4proto != tcp" in line or "== syn" in line


@pytest.mark.needs("root", "namespaces")
def test_nft_understands_it():
    published = ("8080:80", "192.0.2.1:53:53/udp")
    every = pods(mail={**MAIL, "nat": True, "publish": published}, web={"nat": True}, plain={})

    text = ruleset.ruleset("autopod_1234", "ap1234br", every)

    run = subprocess.run(
        ["nft", "--check", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert run.stderr == ""
    assert text.count("dnat ip to 10.98.0.10:80\n") == 2
    assert text.count("dnat ip6 to [fd98::10]:80\n") == 2
    assert text.count("ip daddr 192.0.2.1 fib daddr type local udp dport 53 dnat") == 2
