"""The client of stackfs: what it says when nothing sensible comes."""

import socket

import pytest

from ckpt import stack
from launcher.places import Places


def test_a_daemon_that_does_not_answer(tmp_path, monkeypatch):
    places = Places(tmp_path)
    places.run("pod").mkdir(parents=True)
    monkeypatch.setattr(stack, "_REPLY_SECONDS", 0.01)
    monkeypatch.chdir(places.run("pod"))  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("stackfs.sock")
        listener.listen()
        with pytest.raises(stack.StackError, match="'pod' does not answer"):
            stack.status(places, "pod")
