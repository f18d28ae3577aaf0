import functools
import os
import subprocess
from pathlib import Path

import pytest

from ckpt.kinds import procinfo
from launcher import abi

# For some minutes, by `make fuzz`.
collect_ignore = [] if "FUZZ" in os.environ else ["test_fuzz_real.py"]


@pytest.fixture(scope="session", autouse=True)
def one_shared_memory():
    """In pods no mount hides another; hosts that mount /dev/shm twice lend theirs to some tests."""
    while _points().count(b"/dev/shm") > 1:
        abi.umount2("/dev/shm", abi.MNT_DETACH)


def _points():
    return [m.point for m in procinfo.parse_mounts(Path("/proc/self/mountinfo").read_bytes())]


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Compile a C workload into a static program, once."""

    @functools.cache
    def compile_(source):
        program = tmp_path_factory.mktemp("workload") / source.stem
        argv = ["cc", "-static", "-pthread", "-Wall", "-Werror", "-O1", "-o", program, source]
        subprocess.run(argv, check=True)
        return program

    return compile_
