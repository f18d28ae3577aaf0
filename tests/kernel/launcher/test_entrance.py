"""The short way of `launcher exec`: when it is taken; it leads to the same as the long one."""

import marshal
import os
import resource
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from launcher import abi, config, enter, entrance, pods
from launcher.lock import locked
from tests.kernel.launcher.test_attached import Person

from .conftest import LAUNCHER, wait_until

pytestmark = pytest.mark.needs("root", "namespaces")


def way(pod, *argv, expect=0):
    """Run `launcher ARGV`; return "short" or "long", and what the program wrote."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    run = subprocess.run(
        [LAUNCHER, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == expect, run.stderr
    return "long" if "launcher.verbs" in run.stderr else "short", run.stdout


def path(pod):
    return pod.places.run("a") / "entrance"


def test_who_has_gone_the_long_way_makes_it_short_for_the_next(pod):
    pod.create("a")

    assert way(pod, "exec", "a", "/bin/echo", "x") == ("long", "x\n")
    assert way(pod, "exec", "a", "/bin/echo", "x") == ("short", "x\n")
    assert way(pod, "run", "a", "/bin/echo", "x") == ("short", "x\n")
    assert way(pod, "exec", "a", "sh", "-c", "exit 7", expect=7) == ("short", "")


def test_a_start_makes_it_short(pod):
    pod.launch("start", "a", "/bin/sleep", "1000")

    assert way(pod, "exec", "a", "/bin/true") == ("short", "")


def test_another_configuration_holds_at_once(pod):
    pod.create("a")
    show = ("exec", "a", "/bin/sh", "-c", "echo $MARK; grep CapBnd /proc/self/status")
    way(pod, *show)
    assert way(pod, *show) == ("short", "\nCapBnd:\t00000000000404fb\n")

    pod.configure("a", '[environment]\nMARK = "x"\n[privileges]\ncapabilities = ["chown"]')

    expected = "x\nCapBnd:\t0000000000000001\n"
    assert [way(pod, *show), way(pod, *show)] == [("long", expected), ("short", expected)]
    pod.configure("a", "[limits]\npids = 'many'")
    assert "limits.pids" in pod.launch("exec", "a", "/bin/true", expect=125).stderr
    pod.places.config("a").unlink()
    assert way(pod, *show)[1].startswith("\n")


def test_a_program_alone_gets_its_arguments(pod):
    pod.configure("a", '[arguments]\n"/bin/echo" = ["some", "words"]')
    pod.create("a")

    got = [way(pod, "exec", "a", "/bin/echo"), way(pod, "exec", "a", "/bin/echo")]

    assert got == [("long", "some words\n"), ("short", "some words\n")]
    assert way(pod, "exec", "a", "/bin/echo", "x") == ("short", "x\n")


def test_it_holds_for_one_life_of_the_pod(pod):
    pod.launch("start", "a", "/bin/sleep", "1000")
    old = path(pod).read_bytes()
    pod.launch("kill", "a")
    assert not path(pod).exists()

    path(pod).write_bytes(old)
    assert "is not running" in pod.launch("exec", "a", "/bin/true", expect=125).stderr
    pod.create("a")
    path(pod).write_bytes(old)
    assert way(pod, "exec", "a", "/bin/true") == ("long", "")


def changed(position, value):
    def change(data):
        stamp, *rest = marshal.loads(data)
        return marshal.dumps(((*stamp[:position], value, *stamp[position + 1 :]), *rest))

    return change


OTHERS = {
    "boot": changed(0, "another"),
    "python": changed(1, "3.99"),
    "machine": changed(2, "vax"),
    "launcher": changed(3, (("cli.py", 1, 2),)),
    "nothing": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "another form": lambda data: marshal.dumps(7),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_what_others_have_left_is_made_anew(pod, change):
    pod.launch("start", "a", "/bin/sleep", "1000")
    path(pod).write_bytes(change(path(pod).read_bytes()))

    assert way(pod, "exec", "a", "/bin/true") == ("long", "")
    assert way(pod, "exec", "a", "/bin/true") == ("short", "")


def test_nobody_but_root_leaves_one(pod):
    argv = ["sh", "-c", 'umask 0; exec "$@"', "sh", LAUNCHER, "start", "a", "/bin/sleep", "1000"]
    subprocess.run(argv, stdin=subprocess.DEVNULL, check=True)

    assert pod.places.run("a").stat().st_mode & 0o777 == 0o700
    assert (path(pod).stat().st_uid, path(pod).stat().st_mode & 0o777) == (0, 0o600)


STATE = """
umask; pwd; nice; tr '\\0' '\\n' < /proc/self/environ
ls /proc/self/fd; readlink /proc/self/ns/*; cat /proc/self/cgroup
cat /proc/self/limits /proc/self/oom_score_adj
grep -Ev 'Pid|Tgid|NS|Vm|Rss|switches|Hugetlb|SigQ' /proc/self/status
test $(ps -o sid= -p $$) = $$ && ps -o tty=,ppid= -p $$
"""


def as_a_strange_client():
    """Have a state that programs of pods partly inherit."""
    os.umask(0o077)
    os.nice(3)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    abi.syscall(abi.NR_RT_SIGACTION, 32, struct.pack("4Q", signal.SIG_IGN, 0, 0, 0), 0, 8)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
    os.setgroups([0, 4, 27])
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("321")


@pytest.mark.parametrize("profile", ["strict", "service", "debian"])
def test_both_ways_lead_to_the_same(pod, profile):
    pod.configure("a", f'[privileges]\nprofile = "{profile}"\n[environment]\nMARK = "x"')
    pod.create("a")
    command = [LAUNCHER, "exec", "a", "/bin/sh", "-c", STATE]
    argvs = [[*command[:1], "--debug", *command[1:]], command]

    reader, writer = os.pipe()
    said = [
        subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=as_a_strange_client,
            pass_fds=[writer],
        ).stdout
        for argv in argvs
    ]

    os.close(reader)
    os.close(writer)
    assert said[0] == said[1]
    assert said[1].startswith("0022\n/\n")
    for expected in ("MARK=x", "Groups:\t0 4 27", "321\n", "SigIgn:\t0000000000000000"):
        assert expected in said[1], said[1]
    assert way(pod, "exec", "a", "/bin/true") == ("short", "")


@pytest.mark.parametrize("option", [[], ["--debug"]], ids=["short", "long"])
class TestBothWays:
    @pytest.fixture(autouse=True)
    def running(self, pod):
        pod.launch("start", "a", "/bin/sleep", "1000")

    def test_signals_are_forwarded(self, pod, option):
        script = "trap 'echo got it; exit 3' TERM; echo up; while :; do sleep 0.01; done"
        argv = [LAUNCHER, *option, "exec", "a", "/bin/sh", "-c", script]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
            assert client.stdout.readline() == b"up\n"
            client.terminate()
            assert client.stdout.read() == b"got it\n"
        assert client.returncode == 3

    def test_the_program_goes_on_when_its_client_is_killed(self, pod, option):
        script = "echo up; read line; echo $line > /dev/shm/got"
        argv = [LAUNCHER, *option, "exec", "a", "/bin/sh", "-c", script]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(argv, **pipes) as client:
            assert client.stdout.readline() == b"up\n"
            client.kill()
            client.wait()
            client.stdin.write(b"on\n")
        got = f"/proc/{pod.pod('a').init_pid}/root/dev/shm/got"
        wait_until(lambda: os.path.exists(got) and Path(got).read_text() == "on\n")

    def test_it_waits_for_no_lock_that_a_command_holds(self, pod, option):
        with locked(pod.places, "a"):
            failed = pod.launch(*option, "exec", "a", "/bin/true", expect=None)

        assert "is being worked on by process" in failed.stderr
        assert failed.returncode == 125 or option  # with --debug it is a traceback

    def test_a_reader_that_goes(self, pod, option):
        argv = [LAUNCHER, *option, "exec", "a", "/bin/sh", "-c", "yes; exit 4"]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
            client.stdout.read(10)
            client.stdout.close()
        assert client.returncode in {4, 141}

    def test_many_at_once(self, pod, option):
        argv = [LAUNCHER, *option, "exec", "a", "/bin/sh", "-c", "read x; exit $x"]
        clients = [
            subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)
        ]
        said = [client.communicate(b"7\n")[1] for client in clients]
        if not option:  # the long way is gone by one at a time
            assert said == [b""] * 8
            assert {client.returncode for client in clients} == {7}

    def test_a_pod_that_is_killed_takes_its_programs_along(self, pod, option):
        argv = [LAUNCHER, *option, "exec", "a", "/bin/sleep", "1000"]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as client:
            wait_until(lambda: len(enter.pids(pod.pod("a"))) == 2)
            pod.launch("kill", "a")
            assert client.wait(60) == 137

    def test_closed_streams(self, pod, option):
        script = f"exec {LAUNCHER} {' '.join(option)} exec a /bin/sh -c 'ls /proc/self/fd' <&- 2>&-"
        run = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=True)

        assert run.stdout.split() == ["0", "1", "2", "3"]


def test_a_person(pod):
    pod.launch("start", "a", "/bin/sleep", "1000")
    for _ in range(2):
        person = Person("exec", "a", "/bin/bash", "--norc")
        person.sees(b"# ")
        person.resize(33, 99)
        person.types(b"tty; stty size; echo $TERM; exit 5\n")
        person.sees(b"/dev/pts/0\r\n33 99\r\n" + os.environ.get("TERM", "dumb").encode())
        assert person.ends() == 5


def test_out_of_memory_is_told(pod):
    pod.configure("a", '[limits]\nmemory = "32M"')
    pod.launch("start", "a", "/bin/sleep", "1000")
    hungry = "x = bytearray(200 << 20)"

    failed = pod.launch("exec", "a", "/usr/bin/python3", "-c", hungry, expect=137)

    assert "launcher: the kernel killed python3" in failed.stderr


def test_a_mounting_program_is_served(pod):
    pod.configure("a", '[privileges]\nprofile = "debian"')
    pod.launch("start", "a", "/bin/sleep", "1000")

    script = "mount -t tmpfs any /mnt && grep -c ' /mnt ' /proc/mounts"

    assert way(pod, "exec", "a", "/bin/sh", "-c", script) == ("short", "1\n")


def test_an_entrance_comes_back_as_it_was(pod):
    pod.configure("a", '[arguments]\nls = ["-l"]\n[environment]\nA = "b"')
    running = pod.create("a")
    text, settings = config.read(pod.places, "a")
    made = entrance.of(running, settings)

    entrance.keep(made, text)
    got = entrance.kept(os.fspath(pod.places.prefix), "a")

    same = {**vars(made), "confinement": vars(made.confinement)}
    assert {**vars(got), "confinement": vars(got.confinement)} == same
    pods.destroy(pod.places, "a")
    assert entrance.kept(os.fspath(pod.places.prefix), "a") is None
