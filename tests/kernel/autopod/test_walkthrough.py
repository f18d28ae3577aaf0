"""The article's walk-through, word for word, with Exim."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from examples import leftovers
from examples.exim import mail
from tests.kernel.autopod.conftest import BIN

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

POD_TOML = Path(__file__).parents[3] / "examples/exim/pod.toml"
POD = "10.98.0.10"
# $P is the prefix: empty in the article.
COMMANDS = """
mount -o bind $P/pod $P/autopod/exim/root
autopod add exim
autopod addproc exim /usr/sbin/exim4
autopod checkpoint exim -o $P/exim.pod
autopod restart exim -i $P/exim.pod
"""


def follow(host, commands):
    for line in commands.strip().splitlines():
        argv = shlex.split(line.replace("$P", os.fspath(host.prefix)))
        if argv[0] == "mount":
            subprocess.run(argv, check=True)
        else:
            host.run(*argv)
        if argv[1] in ("addproc", "restart"):
            mail.wait_until(lambda: mail.answers(POD), f"Exim greets after {line}")


@pytest.mark.parametrize("more", ["", "\n[user]\nnamespace = true\n"], ids=["", "user namespace"])
def test_the_article_word_for_word(host, exim_root, more):
    host.configure("exim", POD_TOML.read_text() + more)
    (host.prefix / "pod").symlink_to(exim_root)
    point = host.root("exim")
    point.mkdir(parents=True)
    try:
        follow(host, COMMANDS)
        assert [
            row["command"] for row in host.processes("exim").values() if row["parent"] == 1
        ] == ["/usr/sbin/exim4 -bd -q1s"]
        assert host.pods()["exim"]["lower"] == [str(exim_root)]
        host.run("autopod", "rm", "exim", "--purge")
    finally:
        subprocess.run(["umount", point], check=True)


PLACES = [Path(p) for p in ("/autopod", "/etc/autopod", "/var/lib/autopod", "/run/autopod")]
WITHOUT_PREFIX = """
set -eu
for place in /autopod /etc/autopod /var/lib/autopod /run/autopod; do
    mount -t tmpfs -o mode=755 tmpfs $place
done
mkdir -p /autopod/exim/root /etc/autopod/pods
cp "$2" /etc/autopod/pods/exim.toml
mount -o bind "$1" /autopod/exim/root
autopod add exim
autopod addproc exim /usr/sbin/exim4
autopod checkpoint exim -o /run/autopod/exim.pod
autopod restart exim -i /run/autopod/exim.pod
launcher ps exim
autopod rm exim --purge
test ! -e /var/lib/autopod/exim
"""


def test_the_article_at_its_own_places(exim_root, monkeypatch):
    monkeypatch.delenv("AUTOPOD_PREFIX", raising=False)
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    made = [place for place in PLACES if not place.exists()]
    for place in made:
        place.mkdir()
    argv = ["unshare", "--mount", "--propagation", "private", "bash", "-c", WITHOUT_PREFIX]
    argv += ["bash", exim_root, POD_TOML]
    try:
        run = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    finally:
        for place in made:
            place.rmdir()
    assert run.returncode == 0, run.stdout + run.stderr
    assert "/usr/sbin/exim4 -bd -q1s" in run.stdout
    assert leftovers.links(Path("/")) == []


def test_the_demonstration():
    """`make demo` in full: delivery, queue, destruction, refusals, restart."""
    argv = [BIN / "python", "-m", "examples.exim.demo"]
    run = subprocess.run(
        argv, cwd=POD_TOML.parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Everything held" in run.stdout
