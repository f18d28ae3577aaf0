"""Which kept checkpoint a time means, and which may go: whatever the clock did meanwhile."""

import argparse
import contextlib
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autopod import checkpointing, retention
from autopod.retention import Taken

TIMES = st.integers(0, 10)  # so few that many are the same, and in no order: clocks are set
NUMBERS = st.sets(st.integers(1, 30))


def sound(found):
    """Each number once; what others build upon is there, whole, and has a lower number."""
    known = {one.number: replace(one, since=None) for one in found}
    for one in sorted(found, key=lambda one: one.number):
        base = known.get(one.since)
        if base and base.since is None and base.number < one.number:
            known[one.number] = replace(known[one.number], since=base.number)
    return list(known.values())


KNOWN = st.lists(
    st.builds(Taken, st.integers(1, 30), TIMES, st.booleans(), st.none() | st.integers(1, 30)),
    max_size=15,
).map(sound)


@settings(deadline=None)
@given(KNOWN, st.integers(1, 6), NUMBERS, NUMBERS)
def test_what_may_go(known, keep, in_use, good):
    gone = retention.expendable(known, keep, in_use, lambda one: one.number in good)
    stay = [one for one in known if one not in gone]
    assert set(gone) <= set(known)
    assert not any(one.pinned or one.number in in_use for one in gone)
    newest = sorted((one.number for one in known if not one.pinned), reverse=True)[:keep]
    assert set(newest) <= {one.number for one in stay}
    the_good = [one.number for one in known if one.number in good]
    if the_good:
        assert max(the_good) in {one.number for one in stay}
    else:
        assert gone == []
    # What one that stays builds upon stays, and nothing else; a second look finds nothing more.
    needed = {one.since for one in stay if one.since}
    assert needed <= {one.number for one in stay}
    for one in stay:
        kept = one.pinned or one.number in in_use or one.number in newest or one.number in needed
        assert kept or not the_good or one.number == max(the_good)
    assert retention.expendable(stay, keep, in_use, lambda one: one.number in good) == []


@settings(deadline=None)
@given(KNOWN, KNOWN, st.integers(1, 6))
def test_what_is_copied_is_not_deleted_at_once(own, stored, keep):
    pending = retention.missing(own, stored, keep)
    assert set(pending) <= set(own)
    assert all(one.since is None for one in pending)  # others are of no use there
    there = {(one.number, one.at) for one in stored}
    assert not there & {(one.number, one.at) for one in pending}
    after = [*stored, *pending]
    assert not set(retention.expendable(after, keep, (), lambda _: True)) & set(pending)


@settings(deadline=None)
@given(KNOWN, KNOWN)
def test_what_is_taken_later_has_the_higher_number(own, stored):
    mine = {(one.number, one.at) for one in own}
    others = [one for one in stored if (one.number, one.at) not in mine]
    pending = retention.missing(own, stored, 30)
    given = retention.renumbered(pending, own, stored)
    numbers = []
    for one in pending:
        number = given.get(one.number, one.number)
        if number is None:  # stays where it is
            continue
        numbers.append(number)
        assert one.since is None
        assert number >= one.number
        passed = range(one.number + 1, number + 1) if number > one.number else ()
        assert not any(other.since and other.number in passed for other in own)
        for other in others:
            assert other.at > one.at or other.number < number
    assert numbers == sorted(set(numbers))


@settings(deadline=None)
@given(KNOWN)
def test_no_more_is_read_than_need_be(known):
    asked = []
    retention.expendable(known, 3, (), lambda one: not asked.append(one.number))
    unpinned = [one for one in known if not one.pinned]
    assert asked == ([max(one.number for one in known)] if len(unpinned) > 3 else [])


@settings(deadline=None)
@given(KNOWN, st.integers(1, 9))
def test_what_the_next_one_builds_upon(known, whole_every):
    base = retention.to_build_upon(known, whole_every)
    number = 1 + max((one.number for one in known), default=0)
    whole = [one.number for one in known if one.since is None]
    if base is None:
        assert not whole or number - max(whole) >= whole_every
    else:
        assert base.since is None
        assert base.number == max(whole)
        assert number - base.number < whole_every


def test_one_in_so_many_is_whole():
    known = []
    for number in range(1, 9):
        base = retention.to_build_upon(known, 3)
        known.append(Taken(number, 0, since=base and base.number))
    assert [one.since for one in known] == [None, 1, 1, None, 4, 4, None, 7]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([4], "4"), ([4, 5], "4 to 5"), ([1, 3, 4, 5, 9], "1, 3 to 5, 9")],
)
def test_numbers_in_words(numbers, text):
    assert retention.spans(numbers) == text


@settings(deadline=None)
@given(KNOWN, TIMES)
def test_the_newest_at_a_time(known, moment):
    found = retention.newest_at(known, moment)
    before = [one for one in known if one.at <= moment]
    assert (found is None) == (not before)
    if found:
        assert found in before
        assert found.number == max(one.number for one in before)


@settings(deadline=None)
@given(
    st.floats(0, 1e6, allow_nan=False),
    st.integers(1, 10**6),
    st.floats(0, 1e6, allow_nan=False),
)
def test_when_the_next_is_due(due, interval, took):
    now = due + took
    after = retention.next_due(due, interval, now)
    assert now - 1e-3 <= after <= now + interval + 1e-3
    turns = (after - due) / interval
    assert abs(turns - round(turns)) < 1e-3
    assert round(turns) >= 1


NOW = datetime(2026, 11, 27, 12, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-27T09:00:00Z", datetime(2026, 11, 27, 9, tzinfo=UTC)),
        ("2026-11-27T09:00:00+02:00", datetime(2026, 11, 27, 7, tzinfo=UTC)),
        ("2026-07-27 10:00", datetime(2026, 7, 27, 10)),
        ("2026-11-26", datetime(2026, 11, 26)),
        ("10:00", datetime(2026, 11, 27, 10)),
        ("10:00:30", datetime(2026, 11, 27, 10, 0, 30)),
        ("10:00Z", datetime(2026, 11, 27, 10, tzinfo=UTC)),
        ("2h", datetime(2026, 11, 27, 9, 30, tzinfo=UTC)),
        ("7d", datetime(2026, 11, 20, 11, 30, tzinfo=UTC)),
    ],
)
def test_moments(text, moment):
    assert retention.parse_moment(text, NOW) == moment


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="0123456789:-TZ+smhd. ", max_size=30)))
def test_whatever_is_said(text):
    for parse in (retention.parse_span, lambda text: retention.parse_moment(text, NOW)):
        with contextlib.suppress(ValueError):
            assert parse(text)


def test_summer_time(monkeypatch):
    """What is said in winter of a day in summer is meant as the clocks were then."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        assert checkpointing.moment("2026-07-01 10:00") == datetime(2026, 7, 1, 8, tzinfo=UTC)
        assert checkpointing.moment("2026-12-01 10:00") == datetime(2026, 12, 1, 9, tzinfo=UTC)
        with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
            checkpointing.moment("tomorrow")
    finally:
        monkeypatch.undo()
        time.tzset()
