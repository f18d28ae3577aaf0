"""Each self-checking program of tests/workloads survives a checkpoint and a restart."""

import subprocess

import pytest

from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Compile a C workload into a static program."""

    def compile_(source):
        program = tmp_path_factory.mktemp("workload") / source.stem
        argv = ["cc", "-static", "-pthread", "-Wall", "-Werror", "-O1", "-o", program, source]
        subprocess.run(argv, check=True)
        return program

    return compile_


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
        pod.signal(min(pids))
        assert pod.wait_for_match(r"^(ok|fail:.*)$")[1] == "ok", pod.log()
