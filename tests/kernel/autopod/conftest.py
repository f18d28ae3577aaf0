"""An instance of its own for each test, used as an administrator uses it: by its commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import pods
from launcher.places import Places
from tests.kernel.autopod import repository, visitor

BIN = Path(sys.executable).parent


class Host:
    """Runs the commands of one instance."""

    def __init__(self, prefix):
        self.prefix = prefix

    def run(self, *argv, expect=0):
        """Run a command of the project; return its standard output and standard error.

        Its exit status must be *expect*, unless that is None.
        """
        words = [os.fspath(word) for word in argv]
        run = subprocess.run(
            [BIN / words[0], *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert expect in (None, run.returncode), f"{words}: {run.returncode}\n{run.stdout}"
        assert "Traceback" not in run.stdout
        return run.stdout

    def pods(self):
        return {row["pod"]: row for row in json.loads(self.run("autopod", "list", "--json"))}

    def processes(self, pod):
        """The pod's processes but its init: pid inside -> row."""
        rows = json.loads(self.run("launcher", "ps", pod, "--json"))
        return {row["pid"]: row for row in rows if row["pid"] != 1}

    def log(self, pod):
        return self.run("launcher", "logs", pod)

    def root(self, pod):
        return self.prefix / "autopod" / pod / "root"

    def configure(self, pod, text):
        file = self.prefix / "etc/autopod/pods" / f"{pod}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def host(prefix):
    """Remove what is left by the commands themselves; what they leave then, prefix finds."""
    host = Host(prefix)
    yield host
    for pod in pods.names(Places(prefix)):
        host.run("autopod", "rm", pod, "--purge")


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    keys = repository.Keys(tmp_path_factory.mktemp("gpg"))
    yield keys
    keys.close()


@pytest.fixture
def archive(prefix, keys):
    """A signed archive of security updates that has nothing new for the host that asks it."""
    return repository.prepare(prefix, keys)


@pytest.fixture
def page(host):
    """Serves the page of the host, once its policy is written: page.open()."""
    served = visitor.Page(host)
    yield served
    served.close()
