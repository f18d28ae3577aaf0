"""The command line of `launcher`: what goes the short way means the same on the long one."""

import os
from pathlib import Path

import pytest

from launcher import entrance, verbs
from launcher.cli import asked
from launcher.places import Places

SHORT = [
    ("exec", "a", "/bin/true"),
    ("run", "a", "/bin/true"),
    ("exec", "mail-2", "ls", "-l", "-x", "--help", "-t"),
    ("exec", "a", "sh", "-c", "exit 3"),
    ("exec", "a", "sh", "-c", "a b", "-"),
    ("exec", "a", ""),
    ("exec", "a", "/bin/echo", "", "--debug", "@file"),
]
LONG = [
    (),
    ("exec",),
    ("exec", "a"),
    ("exec", "-t", "a", "/bin/true"),
    ("exec", "a", "-t", "/bin/true"),
    ("exec", "--", "a", "/bin/true"),
    ("exec", "a", "--", "/bin/true"),
    ("exec", "a", "sh", "--", "-x"),  # argparse takes some of these away
    ("exec", "../a", "/bin/true"),
    ("exec", "", "/bin/true"),
    ("exec", "A", "/bin/true"),
    ("exec", "-a", "/bin/true"),
    ("exe", "a", "/bin/true"),
    ("start", "a", "/bin/true"),
    ("--debug", "exec", "a", "/bin/true"),
]


@pytest.mark.parametrize("argv", SHORT)
def test_plain_commands_go_the_short_way(argv):
    parsed = verbs.parser().parse_args(argv)

    assert asked(list(argv)) == parsed.pod
    assert [parsed.program, *parsed.arguments] == list(argv[2:])
    assert not parsed.terminal
    assert parsed.make == (argv[0] == "run")


@pytest.mark.parametrize("argv", LONG)
def test_all_others_do_not(argv):
    assert asked(list(argv)) is None


@pytest.mark.parametrize("prefix", ["/", "/some/where", "/some/where/"])
def test_both_ways_lead_to_the_same_place(prefix):
    places = Places(Path(prefix))

    assert Path(entrance.run(prefix, "a")) == places.run("a")
    assert Path(entrance.config(prefix, "a")) == places.config("a")
    assert os.fspath(places.prefix) == prefix.rstrip("/") or prefix == "/"
