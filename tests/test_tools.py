"""The tools agree: `pytest` alone is the whole gate."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = ["ruff check .", "ruff format --check .", "mypy", "lint-imports"]


@pytest.mark.parametrize("command", COMMANDS)
def test_tool(command):
    tool, *arguments = command.split()
    argv = [Path(sys.executable).with_name(tool), *arguments]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
