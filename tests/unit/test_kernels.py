"""What `make test-kernels` reads and prints."""

import tomllib

import pytest

from tests.kernels import outcome
from tests.kernels.outcome import Outcome
from tests.kernels.together import groups


def test_journeys():
    assert outcome.journeys("6.1-6.18  6.18-6.1-6.12") == [["6.1", "6.18"], ["6.18", "6.1", "6.12"]]
    for text in ("", "6.1", "6.1-", "6.1-6.18 6.1"):
        with pytest.raises(ValueError, match="a journey is"):
            outcome.journeys(text)


def test_table():
    first = Outcome("pipes.py", "ok", notes=["a note"], seconds=1)
    kept = outcome.merge(first, Outcome("pipes.py", "ok", seconds=2), "6.18")
    lost = outcome.merge(first, Outcome("pipes.py", "refused", "no pipes here"), "6.1")
    assert kept == Outcome("pipes.py", "ok", notes=["a note"], seconds=3)
    rows = {"pipes.py": {"6.1-6.18": kept, "6.18-6.1": lost}}
    assert outcome.count(rows, ["6.1-6.18", "6.18-6.1"]) == {"ok": 1, "refused": 1, "failed": 0}
    assert outcome.table(rows, ["6.1-6.18", "6.18-6.1"]) == [
        "          6.1-6.18  6.18-6.1",
        "pipes.py  ok        refused",
        "1 ok, 1 refused, 0 failed",
        "pipes.py, 6.1-6.18: a note",
        "pipes.py, 6.18-6.1: under 6.1: no pipes here",
    ]


def test_workloads_share_a_pod_but_for_those_that_a_kernel_may_refuse():
    found = groups(["busy.c", "first_thread.c", "pipes.py", "emulated_calls.py"])
    assert list(found.values()) == [
        ["first_thread.c"],
        ["pipes.py", "busy.c"],
        ["emulated_calls.py"],
    ]
    assert tomllib.loads(next(iter(found)))["network"] == {"mode": "none"}
