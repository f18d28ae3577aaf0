"""The pod's log: cut while programs write, followed while it is cut."""

import os
import subprocess
import threading

import pytest

from launcher import logfile
from launcher.config import Log
from launcher.places import Places

from .conftest import LAUNCHER, wait_until

LINES = 20_000
LOG = Log(size=1 << 16, keep=99)


@pytest.fixture
def path(tmp_path):
    path = Places(tmp_path).log("a")
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def line(number):
    return b"line %06d of a program that writes a lot\n" % number


def write_all(path, done):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(LINES):
        os.write(fd, line(number))
    os.close(fd)
    done.set()


def test_no_line_is_lost(path, tmp_path):
    """It is cut again and again while a program writes."""
    places, done = Places(tmp_path), threading.Event()
    writer = threading.Thread(target=write_all, args=(path, done))
    writer.start()
    cuts = 0
    while not done.is_set():
        cuts += logfile.rotate(places, "a", LOG)
    writer.join()

    text = b"".join(part.read_bytes() for part in logfile.parts(places, "a"))

    assert cuts > 3
    assert text == b"".join(map(line, range(LINES)))


def test_who_follows_sees_every_line_once(path, tmp_path):
    places, done = Places(tmp_path), threading.Event()
    writer = threading.Thread(target=write_all, args=(path, done))
    follower = logfile.follow(places, "a")
    writer.start()
    text = b""
    while len(text) < LINES * len(line(0)):
        text += next(follower)
        logfile.rotate(places, "a", LOG)
    writer.join(timeout=60)

    assert text == b"".join(map(line, range(LINES)))


def test_who_follows_slowly_sees_what_was_cut_off_meanwhile(path, tmp_path):
    places = Places(tmp_path)
    follower = logfile.follow(places, "a")
    expected = text = b""
    for letter in (b"a", b"b", b"c", b"d"):
        with path.open("ab") as file:
            file.write(letter * 100_000)
        expected += letter * 100_000
        if letter == b"a":
            text += next(follower)
        assert logfile.rotate(places, "a", LOG)
    while len(text) < len(expected):
        text += next(follower)

    assert text == expected


def test_old_parts_go(path, tmp_path):
    for number in range(5):
        path.write_bytes(b"%d" % number * (1 << 17))
        assert logfile.rotate(Places(tmp_path), "a", Log(size="64K", keep=2))

    parts = logfile.parts(Places(tmp_path), "a")

    assert [part.name for part in parts] == ["log.2", "log.1", "log"]
    assert [part.read_bytes()[:1] for part in parts] == [b"3", b"4", b"4"]
    assert not logfile.rotate(Places(tmp_path), "a", Log(size="64K", keep=2))


@pytest.mark.needs("root", "namespaces")
def test_the_holder_cuts_the_log(pod):
    pod.configure("a", '[log]\nsize = "64K"')
    writes = "i=0; while [ $i -lt 4000 ]; do echo a line of the log, $i; i=$((i+1)); done"
    pod.launch("start", "a", "/bin/sh", "-c", f"{writes}; exec sleep 1000")
    log = pod.places.log("a")
    text = "".join(f"a line of the log, {n}\n" for n in range(4000))

    wait_until(lambda: log.with_suffix(".1").exists() and log.stat().st_size < 1 << 16)

    wait_until(lambda: pod.launch("logs", "a").stdout == text)


@pytest.mark.needs("root", "namespaces")
def test_follow(pod):
    pod.launch("start", "a", "/bin/sh", "-c", "echo one; read -r _; echo two", expect=0)
    with subprocess.Popen([LAUNCHER, "logs", "-f", "a"], stdout=subprocess.PIPE) as client:
        assert client.stdout.readline() == b"one\n"
        assert client.stdout.readline() == b"two\n"
        client.terminate()
