"""Kept checkpoints as files: what was killed when, what is pinned or being read."""

import os
import signal
from datetime import UTC, datetime

import pytest

from autopod import checkpoints
from autopod.errors import Refused
from ckpt.archive.read import open_archive
from ckpt.progress import Silent
from launcher.places import Places
from tests.unit.ckpt import archives

LATE = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


def take(places):
    archives.make(checkpoints.next_path(places, "mail"))


def numbers(places):
    return [one.number for one in checkpoints.known(places, "mail")]


def check(path):
    with open_archive(path, archives.TRUSTED) as archive:
        archive.verify(Silent())


def collect(places, keep):
    return [one.number for one in checkpoints.collect(places, "mail", keep, check)]


def path_of(places, number):
    [one] = [one for one in checkpoints.known(places, "mail") if one.number == number]
    return checkpoints.path_of(places, "mail", one)


def test_what_is_needed_stays(places):
    for _ in range(5):
        take(places)
    checkpoints.pin(places, "mail", 1)
    with checkpoints.using(places, "mail", LATE) as (one, path):
        assert one.number == 5
        take(places)
        assert collect(places, 1) == [2, 3, 4]
        check(path)
    data = bytearray(path_of(places, 6).read_bytes())
    data[1541] ^= 1  # in the pages
    path_of(places, 6).write_bytes(data)
    assert collect(places, 1) == []
    assert numbers(places) == [1, 5, 6]
    take(places)
    assert collect(places, 1) == [5, 6]
    checkpoints.pin(places, "mail", 1, pinned=False)
    checkpoints.pin(places, "mail", 1, pinned=False)
    assert collect(places, 1) == [1]
    assert os.listdir(checkpoints.directory(places, "mail")) == [path_of(places, 7).name]


def take_since(places, number):
    [base] = [one for one in checkpoints.known(places, "mail") if one.number == number]
    path = checkpoints.next_path(places, "mail", base)
    archives.make_since(path, checkpoints.path_of(places, "mail", base))


def test_what_another_one_needs_stays(places):
    """As long as that one does, for whatever reason; then it goes as any other."""
    take(places)
    take_since(places, 1)
    take_since(places, 1)
    assert path_of(places, 3).name.endswith("-since-000001.pod")
    assert [one.since for one in checkpoints.known(places, "mail")] == [None, 1, 1]
    assert collect(places, 1) == [2]
    checkpoints.pin(places, "mail", 3)
    take(places)
    assert collect(places, 1) == []
    checkpoints.pin(places, "mail", 3, pinned=False)
    with checkpoints.reading(places, "mail", checkpoints.known(places, "mail")[1]) as path:
        assert collect(places, 1) == []
        check(path)
    assert collect(places, 1) == [1, 3]
    assert numbers(places) == [4]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_killed_while_it_deletes(places, nth):
    """Nothing is left that needs what is not there."""
    take(places)
    take_since(places, 1)
    take_since(places, 1)
    take(places)
    pid = os.fork()
    if pid == 0:
        count, unlink = [0], os.unlink

        def killed(*args, **kwargs):
            unlink(*args, **kwargs)
            count[0] += 1
            if count[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        os.unlink = killed
        collect(places, 1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert len(numbers(places)) == 4 - nth
    there = {one.number for one in checkpoints.known(places, "mail")}
    assert {one.since for one in checkpoints.known(places, "mail")} <= {None, *there}


def test_good_with_what_it_needs(places):
    """The newest counts as good only with the one that it builds upon."""
    take(places)
    archives.make(checkpoints.next_path(places, "mail"), pages=archives.page(5))
    take_since(places, 2)
    data = bytearray(path_of(places, 2).read_bytes())
    data[1541] ^= 1
    path_of(places, 2).write_bytes(data)
    assert collect(places, 1) == []
    assert numbers(places) == [1, 2, 3]


@pytest.mark.parametrize("step", ["fsync", "link", "rename", "unlink"])
@pytest.mark.parametrize("nth", [1, 2])
def test_killed_at_any_step(places, step, nth):
    """Whatever is listed is whole; the next one is taken as if nothing had been."""
    take(places)
    take(places)
    pid = os.fork()
    if pid == 0:
        count, call = [0], getattr(os, step)

        def killed(*args, **kwargs):
            count[0] += 1
            if count[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        setattr(os, step, killed)
        if step == "rename":  # where files cannot be nameless they are hidden
            checkpoints.next_path(places, "mail").with_name(".000003.pod.12345678").write_text("")
        take(places)
        collect(places, 1)
        os._exit(0)
    os.waitpid(pid, 0)
    for number in numbers(places):
        check(path_of(places, number))
    assert numbers(places)[-1] in (2, 3)
    take(places)
    newest = numbers(places)[-1]
    collect(places, 1)
    assert numbers(places) == [newest]
    assert os.listdir(checkpoints.directory(places, "mail")) == [path_of(places, newest).name]


def test_what_is_no_checkpoint_is_none(places):
    take(places)
    own = checkpoints.directory(places, "mail")
    assert own.stat().st_mode & 0o777 == 0o700
    for name in ("000009-20261301T000000Z.pod", "9-20260101T000000Z.pod", "x.pod", "x.pod.pin"):
        (own / name).touch()
    assert numbers(places) == [1]
    for refused in (
        lambda: checkpoints.pin(places, "mail", 9),
        lambda: checkpoints.pin(places, "none", 1),
        lambda: checkpoints.using(places, "mail", datetime(1999, 1, 1, tzinfo=UTC)).__enter__(),
    ):
        with pytest.raises(Refused, match="no kept checkpoint"):
            refused()
