from ipaddress import IPv4Network

import pytest

from autopod.addresses import AddressError, lowest_free


def test_the_first_pod_is_number_ten():
    assert lowest_free([]) == "10.98.0.10/24"


def test_holes_are_filled_whatever_the_prefix_length_says():
    assert lowest_free(["10.98.0.10/24", "10.98.0.12/16", "192.0.2.1/24"]) == "10.98.0.11/24"


def test_a_full_network_is_an_error():
    network = IPv4Network("10.98.0.0/28")
    taken = [f"10.98.0.{n}/28" for n in range(10, 15)]
    assert lowest_free(taken[:-1], network) == "10.98.0.14/28"
    with pytest.raises(AddressError, match=r"no address of 10\.98\.0\.0/28 is free"):
        lowest_free(taken, network)
