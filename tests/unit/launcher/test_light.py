"""What the commands import: each start pays for it."""

import subprocess
import sys

import pytest

HEAVY = {
    "ast", "asyncio", "cryptography", "dataclasses", "hashlib", "inspect", "json", "logging",
    "pyroute2", "subprocess", "threading", "trio", "typing_extensions", "zstandard",
}  # fmt: skip
HEAVY_FOR_THE_SHORT_WAY = HEAVY | {
    "argparse", "msgspec", "pathlib", "re", "socket", "tempfile", "termios", "traceback", "typing",
    "launcher.config", "launcher.places", "launcher.policy", "launcher.pods",
}  # fmt: skip


def imported(modules):
    code = f"import {modules}, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "modules", ["launcher.verbs, launcher.commands, launcher.terminal", "ckpt.cli, autopod.cli"]
)
def test_a_command_imports_nothing_that_it_can_do_without(modules):
    assert not HEAVY & imported(modules)


def test_the_short_way_imports_hardly_anything():
    modules = imported("launcher.cli, launcher.entrance, launcher.attached, launcher.lock")

    assert not HEAVY_FOR_THE_SHORT_WAY & modules
