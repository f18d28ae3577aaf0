import functools
import os
import subprocess

import pytest

# For some minutes, by `make fuzz`.
collect_ignore = [] if "FUZZ" in os.environ else ["test_fuzz_real.py"]


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
