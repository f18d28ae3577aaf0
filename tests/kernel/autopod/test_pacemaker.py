"""The OCF resource agent, called as Pacemaker calls it; the cluster itself: make test-pacemaker."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from autopod import journal
from examples import hosts
from examples.exim.mail import wait_until
from launcher.lock import locked
from tests.kernel.autopod.test_migrate import count, goes_on, pair, start_counter  # noqa: F401

AGENT = Path(__file__).parents[3] / "pacemaker/pod"
BIN = Path(sys.executable).parent
SUCCESS, GENERIC, UNIMPLEMENTED, INSTALLED, CONFIGURED, NOT_RUNNING = 0, 1, 3, 5, 6, 7
SLEEP = "/usr/bin/sleep 1000"
COUNT = "/usr/bin/python3 /var/tmp/counter.py"
DEAF = """\
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("/var/tmp/deaf", "w").close()
time.sleep(1000)
"""

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.long]


def call(machine, action, *, status=SUCCESS, timeout_ms=60000, **parameters):
    """Call the agent's *action* on *machine*; return what it printed. It must end with *status*."""
    given = {"pod": "pod", "bin": BIN, "prefix": machine.prefix, **parameters}
    variables = [f"OCF_RESKEY_{key}={value}" for key, value in given.items() if value is not None]
    variables += ["OCF_ROOT=/usr/lib/ocf", "OCF_RESOURCE_INSTANCE=test"]
    variables += [f"OCF_RESKEY_CRM_meta_timeout={timeout_ms}"]
    argv = ["env", *variables, AGENT, action]
    if isinstance(machine, hosts.Machine):
        return machine.run(*argv, expect=status)
    run = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == status, (action, run)
    return run.stdout + run.stderr


def test_what_it_says_of_itself_is_what_it_does(host):
    described = ElementTree.fromstring(call(host, "meta-data", pod=None))
    assert described.findtext("version") == "1.1"
    actions = {action.get("name") for action in described.iter("action")}
    assert actions == {
        *("start", "stop", "monitor", "migrate_to", "migrate_from", "validate-all", "meta-data"),
    }
    assert {one.get("name") for one in described.iter("parameter")} == {
        *("pod", "program", "checkpoints", "hosts", "prefix", "bin"),
    }
    for other in ("promote", "notify", "reload", ""):
        call(host, other, status=UNIMPLEMENTED)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pod": None},
        {"pod": "../etc"},
        {"pod": "Pod"},
        {"pod": "a b"},
        {"pod": "$(touch x)"},
        {"prefix": "relative"},
        {"checkpoints": "relative"},
        {"hosts": "node"},
        {"hosts": "node:a :b"},
    ],
    ids=str,
)
def test_wrong_parameters_are_told_before_anything_is_done(host, wrong):
    for action in ("validate-all", "start", "stop", "monitor", "migrate_to", "migrate_from"):
        assert "ocf-exit-reason:" in call(host, action, status=CONFIGURED, **wrong)


def test_without_the_commands_it_is_not_installed(host, tmp_path, monkeypatch):
    for tool in ("sh", "env", "date", "timeout", "awk"):
        (tmp_path / tool).symlink_to(Path("/usr/bin") / tool)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", os.fspath(tmp_path))
        said = call(host, "monitor", status=INSTALLED, bin=tmp_path)
    assert "no autopod" in said


def test_a_pod_of_one_node(host, debian_root):
    """Each action, also when there is nothing to be done, and what happens behind its back."""
    call(host, "validate-all")
    call(host, "monitor", status=NOT_RUNNING)
    call(host, "stop")  # what is not here is stopped
    call(host, "migrate_from", status=NOT_RUNNING)
    assert "is not on this node" in call(host, "start", status=INSTALLED, program=SLEEP)
    host.run("autopod", "add", "pod", "--base", debian_root)
    call(host, "monitor", status=NOT_RUNNING)
    said = call(host, "start", status=GENERIC, program="/no/such/program")
    assert "ocf-exit-reason:cannot execute" in said
    call(host, "stop")
    for _ in range(2):
        call(host, "start", program=SLEEP)
        call(host, "monitor")
    (pid,) = host.processes("pod")  # started twice, begun once
    host.run("launcher", "exec", "pod", "/bin/sh", "-c", f"kill -9 {pid}")
    wait_until(lambda: not host.processes("pod"), "the program has ended")
    assert "no program runs" in call(host, "monitor", status=GENERIC)
    call(host, "start", program=SLEEP)
    call(host, "monitor")
    for _ in range(2):
        call(host, "stop")
        call(host, "monitor", status=NOT_RUNNING)


def test_without_a_program_it_is_the_service(host, debian_root):
    host.configure(
        "pod", '[service]\nprogram = "/usr/bin/sleep"\n[arguments]\n"/usr/bin/sleep" = ["999"]\n'
    )
    host.run("autopod", "add", "pod", "--base", debian_root)
    call(host, "start")
    (process,) = host.processes("pod").values()
    assert process["command"] == "/usr/bin/sleep 999"
    call(host, "stop")


def test_a_root_that_a_reboot_has_unmounted_is_mounted(host, debian_root):
    host.run("autopod", "add", "pod", "--base", debian_root)
    host.run("stackfs", "umount", "pod")
    call(host, "start", program=SLEEP)
    call(host, "stop")


def test_who_does_not_listen_is_ended_in_time(host, debian_root):
    """The pod's own patience is longer than Pacemaker's, which would fence the node."""
    host.configure("pod", "[service]\nstop_timeout = 1000\n")
    host.run("autopod", "add", "pod", "--base", debian_root)
    (host.root("pod") / "var/tmp/deaf.py").write_text(DEAF)
    call(host, "start", program="/usr/bin/python3 /var/tmp/deaf.py")
    wait_until((host.root("pod") / "var/tmp/deaf").exists, "it does not listen")
    began = time.monotonic()
    call(host, "stop", timeout_ms=8000)
    assert time.monotonic() - began < 60
    call(host, "monitor", status=NOT_RUNNING)


def test_it_waits_for_who_works_on_the_pod(host, places, debian_root):
    """A checkpoint that is being taken does not make a stop fail."""
    host.run("autopod", "add", "pod", "--base", debian_root)
    call(host, "start", program=SLEEP)
    variables = {"OCF_RESKEY_pod": "pod", "OCF_RESKEY_bin": str(BIN)}
    variables |= {"OCF_RESKEY_prefix": str(host.prefix)}
    argv, environment = [AGENT, "stop"], {**os.environ, **variables}
    with contextlib.ExitStack() as held:
        held.enter_context(locked(places, "pod"))
        stop = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
        assert "is being worked on" in stop.stderr.readline()
        assert host.processes("pod")
    stop.communicate()
    assert stop.returncode == SUCCESS
    call(host, "monitor", status=NOT_RUNNING)


def test_checkpoints_that_all_nodes_share(host, debian_root, tmp_path):
    """What was stopped goes on; what was killed begins anew on its files, if they are here."""
    more = {"checkpoints": tmp_path, "program": COUNT}
    start_counter(host, debian_root)
    host.run("launcher", "stop", "pod")
    call(host, "start", status=INSTALLED, **more | {"checkpoints": tmp_path / "none"})
    call(host, "start", **more)
    first = count(host)
    wait_until(lambda: count(host) > first + 20, "it counts")
    at_least = count(host)
    call(host, "stop", **more)
    call(host, "monitor", status=NOT_RUNNING, **more)
    call(host, "start", **more)
    wait_until(lambda: count(host) > at_least, "it goes on counting")
    host.run("autopod", "checkpoint", "pod", "--keep", "2")
    (host.root("pod") / "var/tmp/newer").touch()
    host.run("launcher", "kill", "pod")  # as by a power failure: this node's files are the newest
    call(host, "start", **more)
    assert (host.root("pod") / "var/tmp/newer").exists()
    host.run("launcher", "kill", "pod")
    (tmp_path / "pod.last").write_text("elsewhere stopped\n")
    assert "newer at elsewhere" in call(host, "start", status=INSTALLED, **more)
    (tmp_path / "pod.last").write_text("elsewhere running\n")  # that node is off, says Pacemaker
    call(host, "start", **more)
    wait_until(lambda: count(host) > at_least, "it goes on counting")
    assert not (host.root("pod") / "var/tmp/newer").exists()
    tmp_path.rename(tmp_path.with_name("away"))  # what is shared is not there: no reason to go on
    call(host, "stop", **more)
    call(host, "monitor", status=NOT_RUNNING, **more)


@pytest.mark.slow
def test_it_moves_as_pacemaker_moves_it(pair, debian_root):  # noqa: F811
    """migrate_to at the source, migrate_from at the target, then stop at the source."""
    source, target = pair
    start_counter(source, debian_root)
    nodes = {"hosts": "node1:a node2:b", "program": COUNT}
    meta = "CRM_meta_migrate_target"
    call(source, "migrate_to", status=CONFIGURED, **nodes)
    call(source, "migrate_to", status=GENERIC, **nodes, **{meta: "nobody"})
    call(source, "migrate_to", status=GENERIC, timeout_ms=5000, **nodes, **{meta: "node2"})
    call(source, "monitor")
    for here, there, node in ((source, target, "node2"), (target, source, "node1")):
        before = count(here)
        call(there, "migrate_from", status=NOT_RUNNING, **nodes)
        call(here, "migrate_to", **nodes, **{meta: node})
        call(there, "migrate_from", **nodes)
        call(here, "stop", **nodes)
        call(here, "monitor", status=NOT_RUNNING, **nodes)
        call(there, "monitor", **nodes)
        goes_on(there, before)
    call(target, "migrate_to", status=GENERIC, **nodes, **{meta: "node1"})  # it is not there
    call(source, "monitor")


@pytest.mark.slow
def test_stopped_at_one_node_it_goes_on_at_another(pair, debian_root, tmp_path):  # noqa: F811
    """By the checkpoints that they share; also where a live migration is refused."""
    source, target = pair
    more = {"checkpoints": tmp_path, "program": COUNT}
    start_counter(source, debian_root)
    call(source, "start", **more)
    for here, there in ((source, target), (target, source)):
        before = count(here)
        call(here, "stop", **more)
        call(there, "start", **more)
        goes_on(there, before)
        call(here, "monitor", status=NOT_RUNNING, **more)
        call(here, "stop", **more)
        call(there, "monitor", **more)
    # What the pod has left at the other node stands in the way of a migration, and of no start.
    meta = {"CRM_meta_migrate_target": "b"}
    said = call(source, "migrate_to", status=GENERIC, **more, **meta)
    assert "ocf-exit-reason:" in said
    assert "files of its own" in said.partition("ocf-exit-reason:")[2]
    before = count(source)
    for machine in (target, source):  # as Pacemaker does when a migration has failed
        call(machine, "stop", **more)
    call(target, "start", **more)
    goes_on(target, before)


@pytest.mark.slow
def test_a_pod_whose_host_is_not_known_is_not_stopped_nor_started(pair, debian_root):  # noqa: F811
    """Given away, not confirmed: that it runs nowhere must not be said while nobody knows."""
    source, _ = pair
    start_counter(source, debian_root)
    before = count(source)
    source.stop_service()
    source.run("launcher", "stop", "pod")
    journal.depart(source.places, "pod", journal.Departure(journal.new_session(), "b"))
    for action in ("monitor", "start", "stop"):
        said = call(source, action, status=GENERIC, timeout_ms=7000, program=COUNT)
        assert "not known which host" in said
    assert count(source) >= before
    source.places.departure("pod").unlink()
    for record in journal.RECORDS:
        (source.places.state("pod") / record).touch()
        call(source, "stop", status=GENERIC, timeout_ms=7000)
        (source.places.state("pod") / record).unlink()
    call(source, "stop")
