import pytest

from autopod.addresses import AddressError, next_free


def test_a_free_address_is_taken_as_wished():
    assert next_free("10.98.3.7/16", ["10.98.3.8/16"]) == "10.98.3.7/16"


def test_a_taken_one_moves_on_whatever_the_other_prefix_length_says():
    assert next_free("10.98.0.10/16", ["10.98.0.10/24", "10.98.0.11/16"]) == "10.98.0.12/16"


def test_the_search_goes_round_and_leaves_out_network_host_and_broadcast():
    taken = [f"192.0.2.{n}/29" for n in (4, 5, 6)]
    assert next_free("192.0.2.4/29", taken) == "192.0.2.2/29"


def test_a_full_network_is_an_error():
    taken = [f"192.0.2.{n}/29" for n in range(2, 7)]
    with pytest.raises(AddressError, match=r"no address of 192\.0\.2\.0/29 is free"):
        next_free("192.0.2.4/29", taken)
