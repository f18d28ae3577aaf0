"""The administrator's program that is asked before a pod is made."""

import pytest

from launcher import guard
from launcher.errors import PodError
from launcher.places import Places


@pytest.fixture
def places(tmp_path):
    made = Places(tmp_path)
    made.guard().parent.mkdir(parents=True)
    return made


def write(places, text, mode=0o755):
    places.guard().write_text(text)
    places.guard().chmod(mode)


def test_without_a_guard_all_may_be_made(places):
    guard.ask(places, "mail")


def test_it_is_told_the_pod_and_the_instance(places, tmp_path):
    write(places, f'#!/bin/sh\necho "$1 $AUTOPOD_PREFIX" >{tmp_path}/asked\n')
    guard.ask(places, "mail")
    assert (tmp_path / "asked").read_text() == f"mail {tmp_path}\n"


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("echo 'autopod: error: no' >&2; echo 'autopod: hint: ask' >&2; exit 1", "here: no", "ask"),
        ("echo plain >&2; exit 3", "here: plain", ""),
        ("exit 1", "it says no", ""),
        ("kill -9 $$", "it says no", ""),
    ],
)
def test_what_it_says_is_told(places, text, says, hint):
    write(places, f"#!/bin/sh\n{text}\n")
    with pytest.raises(PodError, match=says) as said:
        guard.ask(places, "mail")
    assert said.value.hint == hint


def test_one_that_cannot_be_run_is_no_permission(places):
    write(places, "#!/bin/sh\n", 0o644)
    with pytest.raises(PodError, match="cannot be asked"):
        guard.ask(places, "mail")
    write(places, "#!/nowhere\n")
    with pytest.raises(PodError, match="cannot be asked"):
        guard.ask(places, "mail")
