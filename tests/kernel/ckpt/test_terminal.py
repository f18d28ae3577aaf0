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

from launcher import monitor
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]


PROMPT = r"bash-\S+# "


def read_until(fd, pattern):
    """Read from a terminal until *pattern* has come; return the match."""
    text, deadline = "", time.monotonic() + harness.DEADLINE_S
    while True:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {pattern!r} in {text!r}"
        text += os.read(fd, 4096).decode(errors="replace")
        if match := re.search(pattern, text):
            return match


def type_(fd, line):
    os.write(fd, line.encode() + b"\n")


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
        read_until(master, PROMPT)
        type_(master, "stty size; kept=42; echo shell$$.")
        shell = int(read_until(master, r"33 111[^#]*shell(\d+)\.")[1])
        type_(master, "sleep 1000 & echo job$!.")
        job = int(read_until(master, r"job(\d+)\.")[1])
        type_(master, "cat")
        harness.poll(lambda: len(pod.host_pids()) == 3, "cat")
        pids = pod.host_pids().keys()
        pod.dump()
        client.wait(timeout=harness.DEADLINE_S)
        os.close(master)

        pod.restore()
        assert pod.host_pids().keys() == pids
        with contextlib.closing(monitor.attach(places, pod.name, None)) as attached:
            fd = attached.master_fd
            type_(fd, "cat gives it back")
            read_until(fd, r"cat gives it back[^#]*cat gives it back")
            os.write(fd, b"\x03")  # SIGINT to the foreground group
            read_until(fd, PROMPT)
            type_(fd, "jobs -l; stty size; echo kept$kept shell$$.")
            read_until(fd, rf"{job} Running[^#]*33 111[^#]*kept42 shell{shell}\.")
            read_until(fd, PROMPT)
            type_(fd, "kill %1; wait; exit")
            harness.poll(lambda: not pod.host_pids(), "end of the shell")
