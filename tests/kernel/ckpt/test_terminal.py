"""A shell on a terminal of the pod goes on: jobs, foreground group, window, variables."""

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from launcher import holder
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]


PROMPT = r"bash-\S+# "


class Screen:
    """What a terminal shows, from its master's side."""

    def __init__(self, fd):
        self._fd = fd
        self._text = ""

    def type(self, text):
        os.write(self._fd, text.encode())

    def read_until(self, pattern):
        """Read until *pattern* has come; return the match. What follows is for the next call."""
        deadline = time.monotonic() + harness.DEADLINE_S
        while not (match := re.search(pattern, self._text)):
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self._text!r}"
            self._text += os.read(self._fd, 4096).decode(errors="replace")
        self._text = self._text[match.end() :]
        return match


def test_shell_on_a_terminal(places, debian_root):
    with harness.Pod(places, debian_root) as pod:
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
        launcher = Path(sys.executable).with_name("launcher")
        client = subprocess.Popen(
            [launcher, "run", "-t", pod.name, "/bin/bash", "--norc", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        screen = Screen(master)
        screen.read_until(PROMPT)
        screen.type("stty size; kept=42; echo shell$$.\n")
        shell = int(screen.read_until(r"33 111[^#]*shell(\d+)\.")[1])
        screen.type("sleep 1000 & echo job$!.\n")
        job = int(screen.read_until(r"job(\d+)\.")[1])
        screen.type("cat\n")
        harness.poll(lambda: len(pod.host_pids()) == 3, "cat")
        pids = pod.host_pids().keys()
        pod.dump()
        client.wait(timeout=harness.DEADLINE_S)
        os.close(master)

        pod.restore()
        assert pod.host_pids().keys() == pids
        with contextlib.closing(holder.attach(places, pod.name, None)) as attached:
            screen = Screen(attached.master_fd)
            screen.type("cat gives it back\n")
            screen.read_until(r"cat gives it back[^#]*cat gives it back")
            screen.type("\x03")  # SIGINT to the foreground group
            screen.read_until(PROMPT)
            screen.type("jobs -l; stty size; echo kept$kept shell$$.\n")
            screen.read_until(rf"{job} Running[^#]*33 111[^#]*kept42 shell{shell}\.")
            screen.read_until(PROMPT)
            screen.type("kill %1; wait; exit\n")
            harness.poll(lambda: not pod.host_pids(), "end of the shell")
