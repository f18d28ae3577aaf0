"""Each self-checking program of tests/workloads survives a checkpoint and a restart."""

import pytest

from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]


@pytest.mark.parametrize("name", harness.names())
def test_workload(places, debian_root, build, name):
    toml = harness.configuration((harness.WORKLOADS / name).read_text())
    with harness.Pod(places, debian_root, toml) as pod:
        pod.start(*harness.install(pod, name, build))
        pod.wait_for("ready\n")
        pids = pod.host_pids().keys()
        pod.dump()
        assert pod.running() is None
        pod.restore()
        assert pod.host_pids().keys() == pids
        pod.finish(min(pids))
