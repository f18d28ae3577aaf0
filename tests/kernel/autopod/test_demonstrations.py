"""`make demo-apache` and `make demo-redis`, with few clients and one move."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

CLIENTS = {
    "apache": ["--browsers", "9", "--downloads", "1"],
    "redis": ["--writers", "5"],
}


@pytest.mark.parametrize("name", CLIENTS)
def test_a_service_moves_and_its_clients_go_on(request, name):
    request.getfixturevalue({"apache": "apache_root", "redis": "services_root"}[name])
    run = subprocess.run(
        [sys.executable, "-m", f"examples.{name}.demo", "--moves", "1", *CLIENTS[name]],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Everything held" in run.stdout
