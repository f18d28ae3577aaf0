"""What the commands have in common: standard streams that are not there, full or shut; names."""

import io
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from autopod import cli as autopod
from ckpt import cli as ckpt
from launcher import cli as entry
from launcher import commandline, tables
from launcher import verbs as launcher
from stackfs import cli as stackfs

BIN = Path(sys.executable).parent
LISTS = (
    ("launcher", "list"),
    ("launcher", "policy", "pod", "--json"),
    ("launcher", "top"),
    ("autopod", "list"),
    ("stackfs", "list"),
)
HOSTILE = "a\nb\x1b]0;owned\x07\u202e\udcff"
HARMLESS = r"a\nb\x1b]0;owned\x07\u202e\udcff"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command with a redirection of the shell; return its status and what it complains of."""
    monkeypatch.setenv("AUTOPOD_PREFIX", os.fspath(tmp_path))

    def run(argv, redirection):
        script = f'exec "$@" {redirection}'
        words = [os.fspath(BIN / argv[0]), *argv[1:]]
        argv = ["sh", "-c", script, "sh", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("argv", LISTS, ids=" ".join)
def test_closed_streams_are_nobodys(run, argv):
    assert run(argv, "<&- >&- 2>&-") == (0, "")


def test_an_error_is_told_where_only_standard_output_is_closed(run):
    assert run(("launcher", "list"), ">&-") == (0, "")
    status, said = run(("launcher", "ps", "pod"), "<&- >&-")
    assert (status, said) == (1, "launcher: error: pod 'pod' is not running\n")
    assert run(("launcher", "ps", "pod"), ">&- 2>&-") == (1, "")


FULL = (*LISTS[:-1], ("stackfs", "list", "--json"), ("stackfs", "pack", "/etc/default"))


@pytest.mark.parametrize("argv", FULL, ids=" ".join)
def test_a_full_disk_below_standard_output_is_not_the_pods(run, argv):
    status, said = run(argv, ">/dev/full")
    assert status == 1
    assert said == f"{argv[0]}: error: No space left on device: standard output\n"


def test_names_command_no_terminal(capsys):
    class Row(msgspec.Struct):
        command: str
        pid: int

    tables.show([Row(HOSTILE, 7)], Row, as_json=False)
    assert capsys.readouterr().out.splitlines()[1:] == [f"{HARMLESS}  7"]
    tables.show([Row(HOSTILE.removesuffix("\udcff"), 7)], Row, as_json=True)
    assert "\x1b" not in capsys.readouterr().out


def test_errors_command_no_terminal(capsys):
    commandline.print_error("launcher", f"no {HOSTILE}", f"see {HOSTILE}")
    assert capsys.readouterr().err == (
        f"launcher: error: no {HARMLESS}\nlauncher: hint: see {HARMLESS}\n"
    )


@pytest.mark.parametrize(
    ("words", "lazy", "rate"),
    [
        ([], False, None),
        (["--lazy"], True, None),
        (["--lazy-rate", "5"], True, 5),
        (["--lazy-rate", "0", "--lazy"], True, 0),
    ],
)
def test_a_rate_of_what_follows_means_that_it_follows(words, lazy, rate):
    parser = commandline.Parser()
    commandline.add_lazy(parser)
    asked = parser.parse_args(words)
    assert (asked.lazy, asked.lazy_rate) == (lazy, rate)


@pytest.mark.parametrize(
    ("cli", "parser"),
    [
        (autopod, "autopod.cli._parser"),
        (ckpt, "ckpt.cli._parser"),
        (entry, "launcher.verbs.parser"),
        (stackfs, "stackfs.cli._parser"),
    ],
    ids=["autopod", "ckpt", "launcher", "stackfs"],
)
def test_ctrl_c_while_the_command_line_is_read(monkeypatch, capsys, cli, parser):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(parser, interrupted)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="130"):
        cli.command()
    assert capsys.readouterr() == ("", "")


def test_a_policy_that_nobody_wrote_down_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUTOPOD_PREFIX", os.fspath(tmp_path))
    file = tmp_path / "etc/autopod/pods/mail.toml"
    assert launcher.main(["policy", "mail"]) == 0
    told, first, *_ = capsys.readouterr().out.splitlines()
    assert told == f"{file} is not there: all is at its default"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert launcher.main(["policy", "mail"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == first


@pytest.mark.parametrize(
    ("verb", "units"), [("top", ["seconds", "KiB", "percent"]), ("ps", ["seconds", "KiB"])]
)
def test_columns_have_units(capsys, verb, units):
    with pytest.raises(SystemExit):
        launcher.main([verb, "--help"])
    said = capsys.readouterr().out
    assert all(unit in said for unit in units)


@pytest.mark.parametrize("cli", ["launcher", "stackfs"])
def test_names_that_the_terminal_cannot_write_are_no_error(tmp_path, monkeypatch, cli):
    def show(*_):
        print("café")
        return 0

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setenv("AUTOPOD_PREFIX", os.fspath(tmp_path))
    if cli == "stackfs":
        monkeypatch.setattr(stackfs, "_list", show)
        assert stackfs.main(["list"]) == 0
    else:
        monkeypatch.setattr(launcher, "_list", show)
        assert launcher.main(["list"]) == 0
    assert written.getvalue() == b"caf\\xe9\n"
