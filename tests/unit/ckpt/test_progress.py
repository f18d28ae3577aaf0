"""Bars for a person, silence for a program."""

import os
import subprocess
import sys

PROGRAM = """
import os, time
from ckpt import progress
shown = progress.for_terminal()
shown.advance(1)
with shown.step("memory", 10 << 20):
    for _ in range(40):
        shown.advance(1 << 18)
        time.sleep(0.02)
    if os.fork() == 0:
        shown.advance(1 << 40)
        os._exit(0)
    os.wait()
with shown.step("moment"):
    shown.advance(5)
with open("/proc/self/status") as status:
    print(status.read().split("Threads:")[1].split()[0])
"""


def run(stderr):
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        check=True,
        text=True,
    )


def test_silence_for_a_program():
    assert run(subprocess.PIPE).stderr == ""


def test_bars_on_a_terminal():
    master, slave = os.openpty()
    try:
        assert run(slave).stdout == "1\n", "drawing needs no thread"
        text = os.read(master, 65536).decode()
    finally:
        os.close(slave)
        os.close(master)
    assert "memory" in text
    assert "MiB" in text
    assert "TiB" not in text, "a forked child draws nothing"
    assert "moment" not in text, "what is over at once is not worth a bar"
