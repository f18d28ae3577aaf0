"""`launcher probe`: what a pod holds by default, and what its configuration opens."""

import json
from collections import Counter

import pytest

from examples.apache.build import HERE as APACHE
from examples.exim.build import HERE as EXIM

pytestmark = pytest.mark.needs("root", "namespaces", "cc")

WAITS = "#include <unistd.h>\nint main(void) { pause(); }"
OPENED = {
    "exim": {"set-user-ID programs": "they have their effect: no_new_privileges"},
    "apache": {},
    "debian": {
        "mount tmpfs": "mounted: profile debian: by the monitor",
        "mount proc": "mounted: profile debian: by the monitor",
        "set-user-ID programs": "they have their effect: profile debian",
    },
}
PROFILES = {
    "exim": (EXIM / "pod.toml").read_text(),
    "apache": (APACHE / "pod.toml").read_text(),
    "debian": '[privileges]\nprofile = "debian"',
}


@pytest.fixture
def small(host, small_tree):
    """Pod `a` has nothing but a program that waits."""
    host.mount("a", small_tree(WAITS))

    def probe(text, expect=0):
        host.configure("a", text)
        host.launch("start", "a", "/probe")
        probed = host.launch("probe", "a", "--json", expect=None)
        rows = json.loads(probed.stdout)
        assert (probed.returncode, probed.stderr) == (expect, ""), not_held(rows)
        return rows

    return probe


def not_held(rows):
    return {row["attempt"]: row["reason"] for row in rows if row["state"] != "held"}


def test_a_default_pod_holds_everything(small, host):
    rows = small("")

    assert not_held(rows) == {}
    assert len(rows) >= 82
    assert max(Counter(row["attempt"] for row in rows).values()) == 1
    lines = host.launch("probe", "a").stdout.splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].split() == ["ATTEMPT", "STATE", "REASON", "AGAINST"]


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_opened_on_purpose(small, name):
    rows = small(PROFILES[name])

    assert {row["state"] for row in rows} <= {"held", "granted"}
    assert not_held(rows) == OPENED[name]


def test_a_pod_that_is_open(small):
    """Every kind of attempt can find something."""
    rows = small(
        """[privileges]
        seccomp = "none"
        add_capabilities = ["sys_admin", "sys_ptrace", "mknod", "net_raw", "sys_nice", "ipc_lock"]
        """,
        expect=1,
    )

    states = {row["attempt"]: row["state"] for row in rows}
    for name in ("unshare user", "clone3()", "bpf()", "TIOCSTI with high bits", "mount tmpfs"):
        assert states[name] == "granted"
    assert states["raw IPv4 socket"] == states["real-time priority"] == "granted"
    assert states["device node disk"] == "open"
    assert states["devices in the root tree"] == "held"
    assert states["CapEff beyond the configuration"] == "held"
