"""What the record of a drain says: to people, and after a boot."""

from itertools import pairwise
from typing import get_args

from msgspec.structs import replace

from autopod.status import drain, store
from autopod.status.store import Drain, PodRecord

WAITS = Drain(
    "d1", "rebooting", True, ["a new kernel"], "boot", ["linux-image-6.18=1"], "6.18",
    [PodRecord("mail", "archive"), PodRecord("web", "moved", "second")],
)  # fmt: skip


def test_a_journal():
    """Each record adds what is new in it, and one that has nothing new adds nothing."""
    begun = replace(WAITS, phase="stopping", expected=None, pods=[PodRecord("mail")])
    taken = replace(begun, pods=[PodRecord("mail", "archive")])
    records = [
        begun,
        begun,
        taken,
        replace(taken, phase="installing"),
        replace(taken, phase="rebooting", expected="6.18"),
        replace(taken, phase="rebooting", expected="6.18", reboots=1),
        replace(taken, phase="returning", expected="6.18", reboots=1),
        replace(
            begun, phase="returning", expected="6.18", reboots=1, pods=[PodRecord("mail", "back")]
        ),
        replace(begun, phase="done", expected="6.18", reboots=1, pods=[PodRecord("mail", "back")]),
    ]
    news = [store.changes(None, begun), *(store.changes(*pair) for pair in pairwise(records))]
    assert [[one.text for one in change] for change in news] == [
        ["begins, by itself: a new kernel", "pod mail: runs"],
        [],
        ["pod mail: on disk until after the boot"],
        ["to install: linux-image-6.18=1"],
        ["it goes on with a reboot, which is to bring kernel 6.18"],
        ["order 1 to reboot is given"],
        ["the host was booted; the pods are restarted"],
        ["pod mail: runs again"],
        ["done; kernel 6.18 runs, as expected"],
    ]


def test_each_phase_has_words():
    begun = replace(WAITS, phase="stopping")
    for phase in set(get_args(store.Phase)) - {"stopping"}:
        (change,) = store.changes(begun, replace(begun, phase=phase))
        assert change.what == phase
        assert change.text


def test_a_boot_that_was_ordered_is_no_failure():
    for phase in ("ready", "rebooting", "returning", "undoing"):
        found = drain.booted(replace(WAITS, phase=phase))
        assert (found.phase, found.failed) == ("returning", None)
    undone = replace(WAITS, phase="undoing", failed="the disk is full")
    assert drain.booted(undone).failed == "the disk is full"


def test_a_boot_in_the_middle_is_one():
    """Else a host whose kernel fails while it installs the next one would do so for ever."""
    for phase in ("stopping", "installing", "confirming"):
        found = drain.booted(replace(WAITS, phase=phase))
        assert found.phase == "returning"
        assert found.failed.startswith("the host went down while ")
