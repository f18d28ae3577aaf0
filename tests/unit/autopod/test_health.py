"""What is wrong with a host is told from what it prints; nothing that it prints is fatal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autopod.status import health
from autopod.status.health import Record, Supply


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("blk_update_request: I/O error, dev sda, sector 8 op 0x0:(READ)", "io-error"),
        ("EXT4-fs error (device sda1): ext4_lookup:1855: inode #2: comm ls", "io-error"),
        (
            "mce: [Hardware Error]: CPU 0: Machine Check: 0 Bank 5: be00000000800400",
            "machine-check",
        ),
        ("Out of memory: Killed process 7 (x) total-vm:1kB", "out-of-memory"),
        ("watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [x:1]", "lockup"),
        ("INFO: task x:1 blocked for more than 120 seconds.", "lockup"),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "lockup"),
        ("Memory cgroup out of memory: Killed process 7 (x) total-vm:1kB", None),
        ("usb 1-1: new high-speed USB device", None),
    ],
)
def test_what_the_kernel_says(text, kind):
    """A pod that reaches its own limit of memory is no fault of the host."""
    found = health.kernel_faults([Record(5, text)], 0)
    assert [fault.kind for fault in found] == ([kind] if kind else [])


def test_only_of_late_and_only_the_kernel():
    records = [Record(1, "Oops: 0"), Record(9, "Oops: 1"), Record(10, "Oops: 2")]
    [fault] = health.kernel_faults(records, 5)
    assert fault.text == "2 times, last: Oops: 2"
    assert health.parse_kmsg("6,10,99,-;a\\x0ab\n SUBSYSTEM=x\n") == Record(99, "a\nb")
    assert health.parse_kmsg("14,10,99,-;Oops: written by a program") is None


PSI = "some avg10=0.00 avg60=1.00 avg300=50.00 total=1\nfull avg10=0.00 avg60=0 avg300={} total=1\n"


@pytest.mark.parametrize(("share", "is_fault"), [("19.99", False), ("20.01", True)])
def test_pressure(share, is_fault):
    assert (health.pressure_fault("memory", PSI.format(share), 20) is not None) == is_fault


@pytest.mark.parametrize(
    ("total", "free", "is_fault"), [(100, 5, False), (100, 4, True), (0, 0, False)]
)
def test_disks(total, free, is_fault):
    assert (health.disk_fault("/", total, free, 95) is not None) == is_fault


def test_temperature():
    trips = [("passive", 60000), ("critical", 100000)]
    assert health.temperature_fault("cpu", 94000, trips) is None
    assert health.temperature_fault("cpu", 96000, trips)
    assert health.temperature_fault("cpu", 96000, []) is None


MAINS = Supply("AC", "Mains", online=True)
OFF = Supply("AC", "Mains", online=False)
CELL = Supply("BAT0", "Battery", status="Discharging", capacity="71")


@pytest.mark.parametrize(
    ("supplies", "says"),
    [
        ([OFF, CELL], "it discharges; 71 % are left"),
        ([CELL], "71 %"),
        ([Supply("ups", "UPS", status="Discharging")], "it discharges"),
        ([OFF, Supply("ucsi", "USB", online=False), CELL], "71 %"),
        ([OFF, replace(CELL, status="Full"), replace(CELL, name="BAT1")], "71 %"),
        ([MAINS, OFF, CELL], None),
        ([OFF, Supply("ucsi", "USB", online=True), CELL], None),
        ([OFF, replace(CELL, status="Not charging")], None),
        ([MAINS, replace(CELL, status="Unknown")], None),
        ([OFF], None),
        ([], None),
    ],
)
def test_batteries(supplies, says):
    """A battery discharges for a while beside the mains; a socket of USB's with no plug is off."""
    found = health.battery_fault(supplies)
    assert (found and (found.kind, says in found.text)) == (("power", True) if says else None)


def test_a_battery_that_does_not_say():
    for status in ("Unknown", "", "something new"):
        with pytest.raises(ValueError, match="BAT0"):
            health.battery_fault([OFF, replace(CELL, status=status)])


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        ("OL", None, ""),
        ("OL CHRG", None, ""),
        ("OL TRIM", None, ""),
        ("OL LB", None, ""),
        ("OB DISCHRG", "power", "runs on its battery"),
        ("OB DISCHRG LB", "power", "nearly empty"),
        ("FSD OB LB", "power", "turns off"),
        ("OL FSD", "power", "turns off"),
        ("OL RB", "battery", "replaced"),
        ("OB RB", "power", "runs on its battery"),
    ],
)
def test_ups(status, kind, says):
    found = health.ups_fault("rack", status)
    assert (found and found.kind) == kind
    assert not found or says in found.text


@pytest.mark.parametrize("status", ["", "WAIT", "OFF", "BYPASS", "Error: Driver not connected"])
def test_a_ups_that_does_not_say(status):
    with pytest.raises(ValueError, match="rack"):
        health.ups_fault("rack", status)


def test_smart():
    scan = '{"devices": [{"name": "/dev/sda", "type": "scsi"}, {"name": "/dev/nvme0"}]}'
    assert health.smart_devices(scan) == ["/dev/sda", "/dev/nvme0"]
    assert health.smart_fault("/dev/sda", '{"smart_status": {"passed": false}}')
    assert health.smart_fault("/dev/sda", '{"smart_status": {"passed": true}}') is None


@settings(deadline=None, max_examples=60)
@given(st.text(), st.integers(0, 2**40), st.integers(0, 2**40))
def test_nothing_that_is_printed_is_fatal(text, one, two):
    record = health.parse_kmsg(f"6,{one},{two},-;{text}")
    health.kernel_faults([record] if record else [], 0)
    health.parse_kmsg(text)
    health.pressure_fault("io", text, 1)
    health.disk_fault(text, one, two, 95)
    assert health.smart_fault("x", text) is None
    assert health.smart_devices(text) == []
    assert not any(name.startswith("-") for name in health.upses(text)), "no option of upsc's"
