"""What feeds the host is read where the kernel and NUT tell it."""

import os

import pytest

from autopod.status import sensors
from autopod.status.policy import Faults

UPSC = """#!/bin/sh
case "$*" in
  -l) printf 'Init SSL\\n' >&2; printf 'rack\\nstale\\n' ;;
  "rack ups.status") echo OB LB DISCHRG ;;
  *) echo 'Error: Driver not connected' >&2; exit 1 ;;
esac
"""


@pytest.fixture
def supplies(tmp_path, monkeypatch):
    monkeypatch.setattr(sensors, "_SUPPLIES", tmp_path)
    return tmp_path


def supply(supplies, name, **files):
    (supplies / name).mkdir(exist_ok=True)
    for file, content in files.items():
        (supplies / name / file).write_text(f"{content}\n")


def found(places):
    faults, absent = sensors.look(places, Faults())
    power = [(one.subject, one.text) for one in faults if one.kind == "power"]
    return power, [one for one in absent if one.startswith("power: ")]


def test_what_the_kernel_tells(places, supplies):
    supply(supplies, "mouse", type="Battery", scope="Device", status="Discharging")
    supply(supplies, "BAT1", type="Battery", present=0, status="Unknown")
    assert "power: the kernel knows no battery" in found(places)[1]
    supply(supplies, "AC", type="Mains", online=0)
    supply(supplies, "BAT0", type="Battery", present=1, status="Discharging", capacity=71)
    assert found(places)[0] == [("BAT0", "it discharges; 71 % are left")]
    supply(supplies, "BAT0", status="Unknown")
    assert found(places)[0] == []
    assert "power: BAT0 does not say whether it discharges" in found(places)[1]
    supply(supplies, "AC", online=1)
    assert "BAT0" not in str(found(places))


def test_what_nut_tells(places, supplies, monkeypatch):
    program = supplies / "upsc"
    with monkeypatch.context() as only:
        only.setenv("PATH", os.fspath(supplies))
        assert "power: upsc is not installed" in found(places)[1]
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
        assert "power: upsc finds no UPS" in found(places)[1]
        program.write_text(UPSC)
        power, absent = found(places)
    assert power == [("UPS rack", "it runs on its battery, which is nearly empty")]
    assert "power: UPS stale does not say whether it has the mains" in absent
