"""What the kernel asks the daemon, counted: what it knows already it does not ask."""

import json
import os

import pytest

pytestmark = pytest.mark.needs("root", "fuse")


def test_statistics_count_what_was_asked(host):
    (host.lower / "d").mkdir()
    for index in range(20):
        (host.lower / f"d/{index}").write_text("x")
    root = host.mount()

    def stats():
        return json.loads(host.stackfs("stats", "pod", "--json").stdout)

    before = stats()
    assert sorted(os.listdir(root / "d"), key=int) == [str(index) for index in range(20)]
    with open(root / "d/3", "a") as file, open(root / "d/4"):
        file.write("y")
    with pytest.raises(FileNotFoundError):
        (root / "none/such").read_text()
    after = stats()
    assert after["gauges"]["inodes"] - before["gauges"]["inodes"] == 21
    assert after["counters"]["copy_ups"] == 2  # the file and its directory
    assert after["counters"]["directories_listed"] >= 2
    assert after["counters"]["inodes_read"] >= 21
    assert after["gauges"]["resident_bytes"] > 10 << 20
    assert after["gauges"]["file_descriptors"] == 1
    assert after["requests"]["write"]["count"] == 1
    assert 0 < after["requests"]["write"]["p50_us"] <= after["requests"]["write"]["p99_us"]
    text = host.stackfs("stats", "pod", "--prometheus").stdout.decode()
    assert 'stackfs_request_seconds_count{pod="pod",request="write"} 1' in text
    assert "file descriptors" in host.stackfs("stats", "pod").stdout.decode()


def _walk(root_fd):
    """Names of everything below a directory, as a pod's programs see it: without the barrier."""
    found = []
    for at, directories, files, dir_fd in os.fwalk(".", dir_fd=root_fd):
        found += [f"{at}/{name}" for name in directories + files]
        for name in files:
            os.lstat(name, dir_fd=dir_fd)
            os.stat(name, dir_fd=dir_fd)
    return sorted(found)


def _asked(host):
    requests = host.request("stats")["requests"]
    return {name: sum(one["buckets"][1:]) for name, one in requests.items()}


@pytest.mark.needs("patched_pyfuse3")
def test_a_walk_again_asks_for_nothing(host):
    for index in range(300):
        (host.lower / f"d{index % 7}").mkdir(exist_ok=True)
        (host.lower / f"d{index % 7}/{index}").touch()
    (host.lower / "link").symlink_to("d3/3")
    root_fd = os.open(host.mount(), os.O_RDONLY)
    try:
        first = _walk(root_fd)
        assert len(first) == 308
        _walk(root_fd)  # asks for access times, which change by listing and reading links
        before = _asked(host)
        assert before.get("opendir", 0) <= 1  # by the process that was the first in the mount
        assert _walk(root_fd) == first
        assert _asked(host) == before
        os.unlink("d3/10", dir_fd=root_fd)
        os.close(os.open("d4/new", os.O_CREAT | os.O_WRONLY, dir_fd=root_fd))
        assert set(first) ^ set(_walk(root_fd)) == {"./d3/10", "./d4/new"}
    finally:
        os.close(root_fd)


@pytest.mark.needs("patched_pyfuse3")
def test_reading_again_asks_for_nothing(host):
    (host.lower / "file").write_text("text")
    root = host.mount()
    assert (root / "file").read_text() == "text"
    os.close(os.open(root / "file", os.O_RDWR))  # copies nothing, either
    root_fd = os.open(root, os.O_RDONLY)
    before = _asked(host)
    assert before.get("open", 0) <= 1
    for _ in range(10):
        fd = os.open("file", os.O_RDWR, dir_fd=root_fd)
        assert os.read(fd, 99) == b"text"
        os.close(fd)
    os.close(root_fd)
    assert _asked(host) == before
    assert not list((host.state() / "upper").iterdir())
