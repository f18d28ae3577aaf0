"""Positions in a directory: nothing is told twice or left out, whatever comes and goes."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stackfs.listings import Listings, position

NAMES = st.sets(st.binary(min_size=1).filter(lambda name: name not in (b".", b"..")))


@given(stay=NAMES, go=NAMES, come=NAMES, pieces=st.integers(1, 7), forgets=st.booleans())
def test_what_is_there_all_the_time_is_told_once(stay, go, come, pieces, forgets):
    listings, told, start = Listings(), [], 0
    names = stay | go
    while True:
        if forgets:  # another daemon goes on
            listings = Listings()
        piece = list(itertools.islice(listings.after(7, names, start), pieces))
        if not piece:
            break
        told += [name for _, name in piece]
        start = piece[-1][0]
        names = stay | come
    assert len(told) == len(set(told))
    assert stay | {b".", b".."} <= set(told)


def test_positions_follow_from_names():
    """They are in checkpoints: a program goes on from one on another machine."""
    assert position(b"a") == 851349202560073236
    assert 2 < position(b"x" * 255) < 1 << 62


def test_a_listing_read_anew_is_a_new_one():
    listings = Listings()
    assert [name for _, name in listings.after(7, [b"a"], 0)] == [b".", b"..", b"a"]
    assert [name for _, name in listings.after(7, [b"b"], 0)] == [b".", b"..", b"b"]


def test_few_orders_are_remembered():
    listings = Listings()
    for number in range(100):
        list(listings.after(number, [b"a"], 0))
    assert len(listings._orders) == 16
