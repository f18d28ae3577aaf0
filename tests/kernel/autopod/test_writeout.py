import os

import pytest

from autopod.writeout import WriteOut
from examples.exim.mail import wait_until


def test_is_written_out_again_and_again(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: done.append(os.fstat(fd).st_size))
    with (tmp_path / "file").open("wb", buffering=0) as file, WriteOut() as writing:
        for size in (1, 2, 3):
            file.write(b"x")
            writing.more(file.fileno())
            wait_until(lambda size=size: size in done, "it is written out")


def test_an_error_is_told_with_the_next(tmp_path):
    read, write = os.pipe()  # EINVAL: fdatasync(2)

    def fails():
        try:
            writing.more(write)
        except OSError:
            return True
        return False

    with WriteOut() as writing:
        writing.more(write)
        wait_until(fails, "the error is told")
        with pytest.raises(OSError, match="Invalid argument"):
            writing.more(write)
    os.close(read)
    os.close(write)


def test_nothing_to_write(tmp_path):
    with WriteOut():
        pass
