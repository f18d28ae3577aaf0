"""`run`, `exec` and `attach`: streams, terminals, signals, exit statuses; `logs`."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import termios
import time

import pytest

from launcher import enter, holder, pods, terminal
from tests.kernel.launcher.test_serve import holder_of

from .conftest import LAUNCHER, wait_until

pytestmark = pytest.mark.needs("root", "namespaces")


class Person:
    """A command with a terminal of its own, and what it shows."""

    def __init__(self, *argv):
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execv(LAUNCHER, ["launcher", *argv])
        self.shown = b""

    def sees(self, text, seconds=60):
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert select.select([self._fd], [], [], max(0, left))[0], self.shown
            self.shown += os.read(self._fd, 4096)
        _, _, self.shown = self.shown.partition(text)

    def types(self, text):
        os.write(self._fd, text)

    def resize(self, rows, columns):
        termios.tcsetwinsize(self._fd, (rows, columns))

    def ends(self):
        """Return the exit status, 128 more than the signal."""
        while select.select([self._fd], [], [], 20)[0]:
            try:
                self.shown += os.read(self._fd, 4096)
            except OSError:
                break
        os.close(self._fd)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code

    def dies(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


STATUSES = {
    ("/bin/true",): 0,
    ("/bin/sh", "-c", "exit 7"): 7,
    ("/bin/sh", "-c", "kill -9 $$"): 137,
    ("true",): 0,
    ("/etc/passwd",): 126,
    ("/etc",): 126,
    ("/bin/nosuch",): 127,
    ("nosuch",): 127,
    ("",): 127,
}


def test_exit_statuses(pod):
    pod.create("a")

    got = {argv: pod.launch("exec", "a", *argv, expect=None).returncode for argv in STATUSES}

    assert got == STATUSES
    assert pod.launch("exec", "a", "nosuch", expect=127).stderr == (
        "launcher: error: cannot execute 'nosuch': No such file or directory\n"
    )


def test_exec_needs_a_running_pod(pod):
    failed = pod.launch("exec", "a", "/bin/true", expect=125)

    assert failed.stderr.splitlines() == [
        "launcher: error: pod 'a' is not running",
        "launcher: hint: launcher start a PROGRAM",
    ]


def test_streams(pod):
    script = "tr a-z A-Z; echo error >&2"

    out = pod.launch("run", "a", "/bin/sh", "-c", script, text="some text")

    assert (out.stdout, out.stderr) == ("SOME TEXT", "error\n")


def test_much_output_arrives_whole(pod):
    out = pod.launch("run", "a", "/bin/sh", "-c", "seq 200000")

    assert out.stdout.split() == [str(n) for n in range(1, 200001)]


def test_a_pod_that_run_made_ends_with_its_program(pod):
    pod.launch("run", "a", "/bin/true")
    assert pods.find(pod.places, "a") is None

    pod.launch("run", "a", "/bin/sh", "-c", "sleep 1000 > /dev/null 2>&1 &")
    assert len(enter.pids(pod.pod("a"))) == 1


def test_a_pod_whose_first_program_is_missing_ends(pod):
    pod.launch("start", "a", "/bin/nosuch", expect=1)

    assert pods.find(pod.places, "a") is None


def test_signals_are_forwarded(pod):
    script = "trap 'echo got it; exit 3' TERM; echo up; while :; do sleep 0.01; done"
    argv = [LAUNCHER, "run", "a", "/bin/sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        assert client.stdout.readline() == b"up\n"
        client.terminate()
        assert client.stdout.read() == b"got it\n"
    assert client.returncode == 3


def test_the_hosts_terminal_stays_outside(pod):
    """Where only output is a terminal, the program gets a pipe."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [LAUNCHER, "run", "a", "/bin/sh", "-c", "readlink /proc/self/fd/1; test -t 1 || echo none"],
        stdin=subprocess.DEVNULL,
        stdout=slave,
    ):
        os.close(slave)
        shown = b""
        while b"none" not in shown:
            shown += os.read(master, 1000)
    os.close(master)
    assert shown.startswith(b"pipe:")


def test_terminal(pod):
    person = Person("run", "a", "/bin/bash", "--norc")
    person.sees(b"# ")
    person.resize(33, 99)
    person.types(b"tty; ps -o tty= -p $$; stty size; readlink /proc/self/fd/2; exit 5\n")

    person.sees(b"/dev/pts/0\r\npts/0\r\n33 99\r\n/dev/pts/0\r\n")

    assert person.ends() == 5
    assert pods.find(pod.places, "a") is None


def test_interrupt_key_reaches_the_program(pod):
    code = "import signal as s; s.signal(s.SIGINT, s.SIG_DFL); print('up', flush=True); s.pause()"
    person = Person("run", "a", "/usr/bin/python3", "-c", code)
    person.sees(b"up")

    person.types(b"\x03")

    assert person.ends() == 130, person.shown


def test_terminal_for_a_pipe(pod):
    out = pod.launch("run", "-t", "a", "/bin/sh", "-c", "tty; cat", text="line\n")

    lines = sorted(out.stdout.replace("\r", "").splitlines())  # the echo may come first
    assert lines == ["/dev/pts/0", "line", "line"]


def test_program_outlives_its_client_and_can_be_attached_to(pod):
    person = Person("run", "a", "/bin/bash", "--norc")
    person.sees(b"# ")
    person.dies()

    second = Person("attach", "a")
    second.types(b"echo $((40 + 2)) $$\n")
    second.sees(b"42 2\r\n")
    third = Person("attach", "a", "0")
    second.sees(b"somebody else has attached to terminal 0")
    assert second.ends() == 1
    third.types(b"echo $((50 + 2))\n")
    third.sees(b"52\r\n")
    third.types(b"\x1d\x1d\x1d")
    assert third.ends() == 0
    assert len(enter.pids(pod.pod("a"))) == 1
    last = Person("attach", "a")
    last.types(b"exit\n")
    assert last.ends() == 0
    pod.launch("kill", "a")


def test_output_while_nobody_is_attached(pod):
    """Programs never block, and the end of what they wrote is shown to the next client."""
    wait = "until test -e /dev/shm/go; do sleep 0.01; done"
    script = f"stty -echo; echo up; {wait}; seq 100000; touch /dev/shm/done; read line"
    person = Person("run", "a", "/bin/sh", "-c", script)
    person.sees(b"up")
    person.dies()

    pod.launch("exec", "a", "/bin/touch", "/dev/shm/go")
    done = f"/proc/{pod.pod('a').init_pid}/root/dev/shm/done"
    wait_until(lambda: os.path.exists(done))
    second = Person("attach", "a")
    second.sees(b"99999\r\n100000\r\n")
    second.types(b"\n")
    assert second.ends() == 0
    pod.launch("kill", "a")


def test_holder_ends_with_the_pod(pod):
    running = pod.create("a")
    master_fd, slave_fd, index = terminal.open_terminal(running)
    holder.give_console(pod.places, "a", index, master_fd)
    os.close(master_fd)
    os.write(slave_fd, b"hello")
    attachment = holder.attach(pod.places, "a", None)
    assert attachment.index == index == 0
    seen = attachment.recent or os.read(attachment.master_fd, 100)
    assert seen == b"hello"
    os.close(attachment.master_fd)
    os.close(slave_fd)

    pods.destroy(pod.places, "a")

    assert attachment.connection.recv(1) == b""
    attachment.connection.close()


def test_a_holder_that_dies_when_it_is_reached(pod, monkeypatch):
    """Whoever has connected, and was not answered yet, is served by another one."""
    running = pod.create("a")
    holder.connect(pod.places, "a").close()
    old = holder_of(pod)
    connect = holder._connect

    def reach(places, name):
        connection = connect(places, name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{old}"))
        return connection

    monkeypatch.setattr(holder, "_connect", reach)
    master_fd, slave_fd, index = terminal.open_terminal(running)
    holder.give_console(pod.places, "a", index, master_fd)
    attachment = holder.attach(pod.places, "a", None)
    attachment.close()
    os.close(master_fd)
    os.close(slave_fd)
    assert holder_of(pod) not in (None, old)


def test_attach_without_a_terminal(pod):
    pod.create("a")

    failed = pod.launch("attach", "a", expect=1)

    assert failed.stderr.startswith("launcher: error: pod 'a' has no terminal\n")


def test_logs(pod):
    pod.launch("start", "a", "/bin/sh", "-c", "echo one; echo two >&2")
    pod.launch("start", "a", "/bin/sh", "-c", "cat; echo three; sleep 1000")

    wait_until(lambda: pod.launch("logs", "a").stdout == "one\ntwo\nthree\n")

    with subprocess.Popen([LAUNCHER, "logs", "-f", "a"], stdout=subprocess.PIPE) as follower:
        assert [follower.stdout.readline() for _ in range(3)] == [b"one\n", b"two\n", b"three\n"]
        pod.launch("start", "a", "/bin/echo", "four")
        assert follower.stdout.readline() == b"four\n"
        follower.kill()


def test_stop_asks_first_and_kills_then(pod):
    pod.launch(
        "start", "a", "/bin/sh", "-c", "trap 'echo asked; exit' TERM; echo up; sleep 1000 & wait"
    )
    pod.launch("start", "a", "/bin/sh", "-c", "trap '' TERM; echo up; sleep 1000")
    wait_until(lambda: pod.places.log("a").read_text().count("up") == 2)

    pod.launch("stop", "--timeout", "1", "a")

    assert pod.places.log("a").read_text().endswith("asked\n")
    assert pods.find(pod.places, "a") is None


def test_list_knows_running_and_stopped_pods(pod):
    import json

    pod.configure("b", '[network]\naddress = "10.98.7.11/24"')
    pod.create("a")

    rows = json.loads(pod.launch("list", "--json").stdout)

    assert [(row["pod"], row["state"], row["processes"]) for row in rows] == [
        ("a", "running", 0),
        ("b", "stopped", 0),
    ]
    assert rows[1]["address"] == "10.98.7.11/24"


def test_a_second_command_is_told_who_works_on_the_pod(pod):
    from launcher.lock import locked

    with locked(pod.places, "a"):
        failed = pod.launch("start", "a", "/bin/true", expect=1)

    expected = f"launcher: error: pod 'a' is being worked on by process {os.getpid()}\n"
    assert failed.stderr == expected


def test_configuration_errors_name_the_place(pod):
    pod.configure("a", "[limits]\npids = 'many'")

    failed = pod.launch("start", "a", "/bin/true", expect=1)

    path = pod.places.config("a")
    assert failed.stderr == (
        f"launcher: error: {path}: limits.pids = 'many': expected int, got str\n"
    )


def test_usage_errors(pod):
    for argv, message in [
        (("run",), "the following arguments are required: POD, PROGRAM"),
        (("nosuch",), "argument COMMAND: invalid choice: 'nosuch'"),
        (("kill", "../x"), "argument POD: '../x' cannot name a pod"),
    ]:
        error, hint = pod.launch(*argv, expect=2).stderr.splitlines()
        assert error.startswith(f"launcher: error: {message}")
        verb = argv[0] if argv[0] != "nosuch" else ""
        assert hint.split() == ["launcher:", "hint:", "launcher", *verb.split(), "--help"]
