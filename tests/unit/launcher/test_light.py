"""What the commands import: each start pays for it."""

import subprocess
import sys

import pytest

HEAVY = {
    "ast", "asyncio", "cryptography", "dataclasses", "hashlib", "inspect", "json", "logging",
    "pyroute2", "subprocess", "threading", "trio", "typing_extensions", "zstandard",
}  # fmt: skip


@pytest.mark.parametrize(
    "modules", ["launcher.cli, launcher.commands, launcher.terminal", "ckpt.cli, autopod.cli"]
)
def test_a_command_imports_nothing_that_it_can_do_without(modules):
    code = f"import {modules}, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())
