"""The witness of `make test-fleet` sees what it is there for."""

import contextlib
import subprocess

import pytest

from examples.exim.mail import wait_until
from examples.leftovers import tag
from launcher import cgroups
from tests.fleet.chance import draw
from tests.fleet.update import taken_in_turn
from tests.fleet.witness import Witness, program

pytestmark = pytest.mark.needs("root")

STATUS = "Name:\texim4\nState:\t{}\nTracerPid:\t{}\nNSpid:\t4711\t{}\n"


@contextlib.contextmanager
def copy(prefix):
    """Let a pod `web` run at the host that is the instance of *prefix*; yield its group."""
    [unified] = [one for one in cgroups.hierarchies() if one.version == 2]
    group = cgroups.make_group(unified, f"autopod-{tag(prefix)}/web.0", ())
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            (group / "cgroup.procs").write_text(str(process.pid))
            yield group
        finally:
            process.kill()
            process.wait()
    cgroups.remove([group])


@pytest.fixture
def witness(tmp_path):
    watching = Witness({name: tmp_path / name for name in "ab"})
    yield watching
    watching.end()


def test_it_sees_two_copies_and_not_one_that_is_frozen(witness, tmp_path):
    assert witness.where("web") == []
    with copy(tmp_path / "a") as first:
        wait_until(lambda: witness.where("web") == ["a"], "it is seen")
        (first / "cgroup.freeze").write_text("1")
        wait_until(lambda: witness.where("web") == [], "it stands still")
        with copy(tmp_path / "b"):
            wait_until(lambda: witness.where("web") == ["b"], "the other one is seen")
            assert witness.twice == []
            (first / "cgroup.freeze").write_text("0")
            wait_until(lambda: witness.twice, "both are seen")
    wait_until(lambda: witness.where("web") == [], "it has ended")
    assert witness.take_pause("web") > 0


@pytest.mark.parametrize(
    ("state", "tracer", "inside", "runs"),
    [
        ("S (sleeping)", 0, 3, True),
        ("R (running)", 0, 3, True),
        ("S (sleeping)", 0, 1, False),
        ("S (sleeping)", 99, 3, False),
        ("t (tracing stop)", 99, 3, False),
        ("Z (zombie)", 0, 3, False),
    ],
)
def test_what_runs(state, tracer, inside, runs):
    assert (program(STATUS.format(state, tracer, inside)) == "exim4") is runs


def test_a_round_can_be_done_again():
    where = {"exim": "a", "apache": "b"}
    drawn = [draw(1, number, where) for number in range(200)]
    assert drawn == [draw(1, number, where) for number in range(200)]
    assert {one.kind for one in drawn} == {"member", "agent", "service", "host", "network"}
    assert all(one.target != where[one.pod] for one in drawn)
    dead = [one for one in drawn if one.moment == "recovery"]
    assert all(one.victim != where[one.pod] for one in dead)


def test_slots_in_turn():
    turn = ["{} takes a slot of default", "{} gives back a slot of default"]
    good = [line.format(name) for name in "cab" for line in turn]
    assert taken_in_turn(good, 3)
    assert not taken_in_turn([good[0], good[2], good[1], good[3]], 2)
    assert not taken_in_turn(good[:4], 3)
