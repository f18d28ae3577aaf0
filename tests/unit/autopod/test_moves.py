"""What a move says of itself while it goes on."""

import os

import pytest

from autopod import journal, moves
from ckpt.progress import Silent


@pytest.fixture
def pod(places):
    for directory in (places.state("web"), places.run("web")):
        directory.mkdir(parents=True)
    return "web"


def test_progress_is_seen_while_it_lasts(places, pod):
    with moves.recorded(places, pod, "beta", Silent()) as told:
        with told.step("layers"):
            told.advance(5)
            told.advance(7)
        with told.step("send"):
            [seen] = moves.going_on(places)
    assert (seen.pod, seen.host, seen.step, seen.done_bytes) == ("web", "beta", "send", 12)
    assert seen.pid == os.getpid()
    assert moves.going_on(places) == []
    assert list(places.run(pod).iterdir()) == []


def test_what_a_killed_one_left_is_not_believed(places, pod):
    with moves.recorded(places, pod, "beta", Silent()) as told, told.step("send"):
        file = places.run(pod) / "moving"
        file.write_bytes(file.read_bytes().replace(str(os.getpid()).encode(), b"999999999"))
        assert moves.going_on(places) == []
        file.write_bytes(b"{")
        assert moves.going_on(places) == []
        journal.depart(places, pod, journal.Departure("0" * 32, "beta"))
        [seen] = moves.going_on(places)
        assert (seen.host, seen.pid) == ("beta", 0)


def test_a_pod_that_comes(places, pod):
    journal.arrive(places, pod, "0" * 32)
    [seen] = moves.going_on(places)
    assert (seen.host, seen.step) == (None, "it is being built here")


def test_a_failure_of_the_move_is_the_moves(places, pod):
    with (
        pytest.raises(KeyError),
        moves.recorded(places, pod, "b", Silent()) as told,
        told.step("x"),
    ):
        raise KeyError
    assert moves.going_on(places) == []
