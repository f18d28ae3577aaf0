"""A host of a fleet is drained, and its pods go where there is room for them."""

import json

import pytest

from examples.exim.mail import wait_until
from tests.kernel.autopod.test_migrate import count, goes_on, pair, start_counter  # noqa: F401

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]


def choices(machine, pod, expect=0):
    found = json.loads(machine.run("autopod", "fleet", "place", pod, "--json", expect=expect))
    return {one["host"]: one for one in found}


def test_a_drain_finds_the_host(pair, tmp_path, debian_root):  # noqa: F811
    a, b = pair
    for machine in pair:
        machine.stop_service()
        machine.serve(f'[fleet]\nfile = "{tmp_path}/fleet.db"\nttl_s = 30\nslots = 2\n')
    start_counter(a, debian_root)
    wait_until(lambda: {"a", "b"} <= choices(a, "pod", None).keys(), "both hosts are there")
    found = choices(a, "pod")
    assert (found["a"]["possible"], found["b"]["possible"]) == (False, True)
    assert "pods run there" in a.run("autopod", "fleet", "place", "pod")

    b.run("autopod", "drain", "--no-install")
    assert "it has a reboot slot" in choices(a, "pod", expect=1)["b"]["reasons"]
    b.run("autopod", "drain", "--undo")

    before = count(a)
    said = json.loads(a.run("autopod", "drain", "--no-install", "--json"))
    assert [(one["place"], one["host"]) for one in said["pods"]] == [("moved", "b")]
    goes_on(b, before)
    assert a.living("pod") == 0
    a.run("autopod", "drain", "--undo")
    assert b.living("pod")
    b.run("autopod", "fleet", "place", "none", expect=1)
