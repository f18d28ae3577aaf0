"""`launcher top`."""

import json

import pytest

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "namespaces", "cc")

EATS = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    if (fork() == 0) memset(malloc(96 << 20), 1, 96 << 20);
    wait(0);
    memset(malloc(16 << 20), 1, 16 << 20);
    write(1, "up\n", 3);
    pause();
}
"""


def test_usage_and_a_kill_for_want_of_memory(host, small_tree):
    host.mount("a", small_tree(EATS))
    host.configure("a", '[network]\nmode = "none"\n[limits]\nmemory = "64M"')
    assert json.loads(host.launch("top", "--json").stdout) == []
    host.launch("start", "a", "/probe")
    wait_until(lambda: host.places.log("a").read_text() == "up\n")

    [row] = json.loads(host.launch("top", "--json").stdout)

    assert row["pod"] == "a"
    assert row["processes"] == 1
    assert row["cpu"] > 0
    assert 16 << 10 <= row["memory"] <= row["limit"] == 64 << 10
    assert row["oom_kills"] == 1
    assert host.launch("top").stdout.split()[:4] == ["POD", "PROCESSES", "CPU", "MEMORY"]
