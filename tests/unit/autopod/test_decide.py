"""When a host is drained, and when not."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autopod.status import decide, policy, windows
from autopod.status.decide import Situation
from autopod.status.health import Fault
from autopod.status.kernels import Kernel
from autopod.status.policy import Act, Policy
from autopod.status.report import Report, Update
from launcher import toml
from launcher.toml import ConfigError

NOW = datetime(2026, 11, 27, 2, 30, tzinfo=UTC)  # a Friday
ACT = Act(enabled=True)
CALM = Situation(running=["mail"], blockers=[], failed=None)
KERNEL = Kernel("6.1.0-40-amd64", "6.1.90-1", "6.1.0-40-amd64", None, None, None)
IMAGE = Update("linux-image-6.1.0-41-amd64", None, "6.1.158-1", "S", "reboot", "the kernel")
NEEDED = Report(NOW, None, [], [IMAGE], [], KERNEL, [], [], [])


def test_a_new_kernel():
    assert decide.decide(NEEDED, ACT, NOW, CALM).act
    quiet = replace(NEEDED, updates=[replace(IMAGE, level="restart")])
    assert not decide.decide(quiet, ACT, NOW, CALM).act


@pytest.mark.parametrize(
    ("report", "act", "situation", "says"),
    [
        ({"unknown": "not signed"}, {}, {}, "unknown what is to be installed: not signed"),
        ({"kernel": None}, {}, {}, "which kernel runs"),
        ({"removed": ["exim4"]}, {}, {}, "would remove exim4"),
        ({"faults": [Fault("power", "UPS rack", "no mains")]}, {}, {}, "UPS rack: no mains"),
        ({}, {"enabled": False}, {}, "report only"),
        ({}, {"hold": "audit"}, {}, "held: audit"),
        ({}, {"hold_pods": ["mail"]}, {}, "pod mail is held"),
        ({}, {}, {"blockers": ["logged in: root"]}, "logged in: root"),
        ({}, {}, {"failed": "no room"}, "no room"),
        ({}, {}, {"held": "audit"}, "held by hand: audit"),
        ({}, {"window": [windows.Window("03:00", "04:00")]}, {}, "outside"),
    ],
)
def test_what_speaks_against_it(report, act, situation, says):
    found = decide.decide(
        replace(NEEDED, **report), replace(ACT, **act), NOW, replace(CALM, **situation)
    )
    assert not found.act
    assert says in "; ".join(found.against)


def test_a_fault_may_need_the_reboot():
    broken = [Fault("smart", "/dev/sda", "it fails"), Fault("battery", "UPS rack", "it is old")]
    assert decide.decide(replace(NEEDED, faults=broken), ACT, NOW, CALM).act


def test_a_reboot_that_is_pending_does_not_follow_from_what_is_unknown_either():
    installed = replace(KERNEL, reboot_required=["linux-base"])
    found = decide.decide(
        replace(NEEDED, kernel=installed, unknown="stale", updates=[]), ACT, NOW, CALM
    )
    assert found.wanted
    assert not found.act


@pytest.mark.parametrize(
    ("window", "holds"),
    [
        (windows.Window("02:00", "03:00"), True),
        (windows.Window("02:00", "02:30"), False),
        (windows.Window("02:00", "03:00", days=["sat"]), False),
        (windows.Window("23:00", "04:00", days=["thu"]), True),
        (windows.Window("23:00", "04:00", days=["fri"]), False),
        (windows.Window("03:00", "04:00", zone="Europe/Berlin"), True),
        (windows.Window("00:00", "00:00"), True),
    ],
)
def test_windows(window, holds):
    assert window.holds(NOW) == holds


@settings(deadline=None, max_examples=60)
@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)),
    st.times().map("{:%H:%M}".format),
    st.times().map("{:%H:%M}".format),
)
def test_a_window_and_what_it_leaves_out_are_the_whole_week(moment, one, two):
    now = moment.replace(tzinfo=UTC)
    first, second = windows.Window(one, two), windows.Window(two, one)
    assert (first.holds(now) != second.holds(now)) or one == two


def read(text):
    return toml.decode(text.encode(), Path("/etc/autopod/autopod.toml"), Policy)


def test_the_file():
    found = read(
        '[act]\nenabled = true\n[[act.window]]\nfrom = "02:00"\nto = "04:00"\ndays = ["sat"]\n'
        "[[act.blackout]]\nfrom = 2026-11-26T00:00:00Z\nto = 2026-11-28T00:00:00+01:00\n"
    )
    assert found.act.window == [windows.Window("02:00", "04:00", ["sat"])]
    assert "blackout" in windows.against([], found.act.blackout, NOW)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[act]\nreboot = []\n", r"act\.reboot"),
        ('[[act.window]]\nfrom = "2"\nto = "04:00"\n', "use HH:MM"),
        ('[[act.window]]\nfrom = "02:00"\nto = "04:00"\nzone = "Mars"\n', "Mars"),
        ("[[act.blackout]]\nfrom = 2026-11-26T00:00:00\nto = 2026-11-28T00:00:00Z\n", "offset"),
        ('[apt]\nsecurity = ["x\\nPin-Priority: 1"]\n', "pins no release"),
        ("[service]\nevery_s = 0.1\n", "a second at least"),
        ("[service]\nevery_s = nan\n", "a second at least"),
        ("[faults]\nio_pressure = nan\n", r"faults\.io_pressure = nan: must be above 0"),
        (
            "[[act.blackout]]\nfrom = 2026-11-28T00:00:00Z\nto = 2026-11-26T00:00:00Z\n",
            "over before it begins",
        ),
        (
            "[[notify]]\nby = 'webhook'\nurl = 'http://x'\nheaders = {'a b' = 'secret'}\n",
            r"notify\[0\]\.headers = 'a b': it, or its value, cannot be a header of HTTP$",
        ),
        (
            "[[notify]]\nby = 'x'\n",
            r'notify\[0\]\.by = .*: must be "webhook" or "mail" or "command"',
        ),
        ("[act]\nenable = true\n", "no such key"),
    ],
)
def test_errors_name_the_key(text, says):
    with pytest.raises(ConfigError, match=says):
        read(text)


def test_without_a_file_it_only_reports(tmp_path):
    from launcher.places import Places

    assert not policy.load(Places(tmp_path)).act.enabled
