"""A pod's service: started again as configured, whoever is killed."""

import json
import os
import signal
from pathlib import Path

import pytest

from launcher import enter, holder, keeper, pods

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "namespaces")

LOOP = ["-c", "echo begun; exec sleep 1000"]


def configure(pod, restart, arguments, program="/bin/sh", more=""):
    pod.configure(
        "a",
        f'[service]\nprogram = "{program}"\nrestart = "{restart}"\n'
        f'[arguments]\n"{program}" = {json.dumps(arguments)}\n{more}',
    )


def log(pod):
    return pod.places.log("a").read_text()


def begun(pod, times):
    wait_until(lambda: log(pod).count("begun") == times)


def only(pod):
    [pid] = enter.pids(pod.pod("a"))
    return pid


def keepers(pod):
    """Processes of the holder that are keepers: its forks, but for the mounter."""
    mark = b"launcher.holding"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if mark in command and os.fsencode(pod.places.prefix) in environment and parent != 1:
            found.append(int(entry.name))
    return found


def test_a_program_that_is_killed_is_started_again(pod):
    configure(pod, "on-failure", LOOP)
    pod.launch("start", "a")
    begun(pod, 1)
    first = only(pod)

    os.kill(first, signal.SIGKILL)

    begun(pod, 2)
    assert only(pod) != first
    assert "launcher: /bin/sh: ended by SIGKILL; started again in 0.2 s\n" in log(pod)


@pytest.mark.parametrize(
    ("restart", "status", "times"), [("on-failure", 0, 1), ("always", 0, 3), ("on-failure", 3, 3)]
)
def test_the_exit_status_counts(pod, restart, status, times):
    configure(pod, restart, ["-c", f"echo begun; exit {status}"])
    pod.launch("start", "a")

    if times == 1:
        with holder.keep(pod.places, "a", start=False) as connection:
            connection.settimeout(60)
            assert connection.recv(100) == b"{}", "the service is over"
        assert log(pod) == "begun\n"
    else:
        wait_until(lambda: log(pod).count("begun") >= times)
        assert f"exit status {status}; started again in 0.4 s" in log(pod)


def test_a_daemon_lasts_until_its_last_process(pod):
    configure(pod, "on-failure", ["-c", "sleep 1000 & sleep 1000 & echo begun"])
    pod.launch("start", "a")
    wait_until(lambda: len(enter.pids(pod.pod("a"))) == 2 and "begun" in log(pod))

    for pid in enter.pids(pod.pod("a")):
        os.kill(pid, signal.SIGKILL)

    begun(pod, 2)
    assert "launcher: /bin/sh: ended; started again" in log(pod)


@pytest.mark.parametrize("whom", ["keeper", "holder", "both at once"])
def test_the_keeper_may_be_killed(pod, whom):
    configure(pod, "on-failure", LOOP)
    pod.launch("start", "a")
    begun(pod, 1)
    [old] = keepers(pod)
    boss = int(Path(f"/proc/{old}/stat").read_text().rpartition(")")[2].split()[1])
    first = only(pod)

    if whom != "keeper":
        os.kill(boss, signal.SIGKILL)
    if whom != "holder":
        os.kill(old, signal.SIGKILL)
    assert only(pod) == first, "the service goes on"
    wait_until(lambda: not os.path.exists(f"/proc/{old}"))
    if whom == "keeper":
        wait_until(lambda: keepers(pod) not in ([], [old]))
    else:
        wait_until(lambda: not os.path.exists(f"/proc/{boss}"))
        holder.keep(pod.places, "a", start=False).close()
    os.kill(first, signal.SIGKILL)

    begun(pod, 2)
    [_] = enter.pids(pod.pod("a"))
    pod.launch("stop", "a")
    assert keepers(pod) == []


def test_stop_does_not_start_it_again(pod):
    ends = 'trap "sleep 0.3; echo ended; exit 1" TERM; echo begun; sleep 1000 & wait'
    configure(pod, "always", ["-c", ends])
    pod.launch("start", "a")
    begun(pod, 1)

    pod.launch("stop", "a")

    assert log(pod) == "begun\nended\n"
    assert pods.find(pod.places, "a") is None


def test_stop_kills_what_does_not_end_in_time(pod):
    ignores = ["-c", 'trap "" TERM; echo begun; while :; do sleep 1000; done']
    configure(pod, "always", ignores)
    file = pod.places.config("a")
    file.write_text(file.read_text().replace("[service]", "[service]\nstop_timeout = 0.2"))
    pod.launch("start", "a")
    begun(pod, 1)

    pod.launch("stop", "a")

    assert pods.find(pod.places, "a") is None


def test_what_cannot_be_executed_is_said_at_once(pod):
    configure(pod, "always", [], program="/no/such")

    failed = pod.launch("start", "a", expect=1)

    assert (
        failed.stderr == "launcher: error: cannot execute '/no/such': No such file or directory\n"
    )
    assert pods.find(pod.places, "a") is None


def test_another_program_is_not_kept(pod):
    configure(pod, "always", LOOP)
    pod.launch("start", "a", "/bin/sh", "-c", "echo begun")
    begun(pod, 1)
    wait_until(lambda: enter.pids(pod.pod("a")) == [])

    assert not (pod.places.run("a") / "holder.sock").exists()


def test_a_pod_without_service(pod):
    failed = pod.launch("start", "a", expect=1)

    assert "pod 'a' has no service to start" in failed.stderr


def test_emulated_calls_of_a_service(pod):
    """Its listener is the holder's, as any program's is."""
    script = "mount -t tmpfs none /mnt && echo begun; exec sleep 1000"
    configure(pod, "on-failure", ["-c", script], more='[privileges]\nprofile = "debian"\n')
    pod.launch("start", "a")
    begun(pod, 1)
    os.kill(only(pod), signal.SIGKILL)
    wait_until(lambda: "started again" in log(pod) and enter.pids(pod.pod("a")))


def test_policy_and_pauses():
    assert [keeper.again("no", status) for status in (0, 1, -9, None)] == [False] * 4
    assert [keeper.again("on-failure", s) for s in (0, 1, -9, None)] == [False, True, True, True]
    assert [keeper.again("always", status) for status in (0, 1, -9, None)] == [True] * 4
    assert [keeper.delay(n) for n in (0, 1, 2, 9, 10, 1000)] == [0.1, 0.2, 0.4, 51.2, 60, 60]
