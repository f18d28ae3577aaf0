"""Images as lower layers: mounted privately, whole, and gone with the daemon."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "fuse")

MAKERS = {
    "squashfs": lambda source, image: ["mksquashfs", source, image, "-quiet", "-no-progress"],
    "erofs": lambda source, image: ["mkfs.erofs", "--quiet", image, source],
}


def fill(lower):
    (lower / "d/e").mkdir(parents=True)
    (lower / "d/file").write_text("from the image")
    (lower / "d/big").write_bytes(os.urandom(300_000))
    os.link(lower / "d/file", lower / "d/e/linked")
    os.symlink("file", lower / "d/link")
    os.mkfifo(lower / "d/fifo")
    os.mknod(lower / "d/null", 0o20666, os.makedev(1, 3))
    os.chmod(lower / "d/file", 0o4755)
    os.chown(lower / "d/e", 12, 34)
    os.setxattr(lower / "d/big", "user.note", b"value")


def make(kind, source, image):
    subprocess.run([*MAKERS[kind](source, image)], check=True, stdout=subprocess.DEVNULL)
    return image


def loops(image):
    """The loop devices over a file."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = path.read_text().strip()
        except FileNotFoundError:  # given back meanwhile
            continue
        if text == os.fspath(image):
            found.append(path.parent.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_an_image_is_a_lower_layer(host, kind, tmp_path):
    fill(host.lower)
    image = make(kind, host.lower, tmp_path / f"image.{kind}")
    top = tmp_path / "top"
    top.mkdir()
    (top / "over").write_text("a directory above the image")
    host.stackfs("mount", "pod", "--lower", top, "--lower", image)
    root = host.root()
    assert sorted(os.listdir(root)) == ["d", "over"]
    assert (root / "d/big").read_bytes() == (host.lower / "d/big").read_bytes()
    assert os.getxattr(root / "d/big", "user.note") == b"value"
    assert os.stat(root / "d/file").st_mode == 0o104755
    assert os.stat(root / "d/null").st_rdev == os.makedev(1, 3)
    number = os.stat(root / "d/file").st_ino
    with open(root / "d/file", "a") as file:
        file.write("+")
    for name in ("d/file", "d/e/linked"):
        assert (root / name).read_text() == "from the image+"
        assert os.stat(root / name).st_ino == number
    os.unlink(root / "d/big")
    shown = host.stackfs("diff", "pod").stdout.split(b"\n")
    assert b"D       300000 /d/big" in shown
    identities = [one["identity"] for one in host.request("status", identify=True)["lower"]]
    assert identities[1] == host.stackfs("identity", host.lower).stdout.decode().strip()
    assert identities[1] == host.stackfs("identity", image).stdout.decode().strip()
    host.kill_all()
    host.stackfs("mount", "pod")
    assert (root / "d/e/linked").read_text() == "from the image+"
    assert os.stat(root / "d/e/linked").st_ino == number
    assert "/image" not in host.seen("/proc/self/mounts").read_text()
    host.stackfs("umount", "pod")
    assert host.stackfs("diff", "pod").stdout.split(b"\n") == shown
    wait_until(lambda: not loops(image))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_killed_daemon_leaves_no_loop_device(host, kind, tmp_path):
    fill(host.lower)
    image = make(kind, host.lower, tmp_path / "image")
    host.stackfs("mount", "pod", "--lower", image)
    assert len(loops(image)) == 1 or kind == "erofs"
    host.kill_all()
    host.run("umount", "--lazy", host.prefix / "autopod/pod")
    wait_until(lambda: not loops(image))


def test_identities_of_images_are_kept_by_the_file(host, tmp_path):
    """Two images whose files have the same numbers, sizes and times are told apart."""
    found = []
    for text in ("one", "two"):
        (host.lower / "f").write_text(text)
        for path in (host.lower / "f", host.lower):
            os.utime(path, (0, 0))
        image = make("squashfs", host.lower, tmp_path / text)
        found.append(host.stackfs("identity", image).stdout)
        assert host.stackfs("identity", image).stdout == found[-1]
        assert host.stackfs("identity", host.lower).stdout == found[-1]
    assert found[0] != found[1]
    shutil.copyfile(tmp_path / "two", tmp_path / "one")
    assert host.stackfs("identity", tmp_path / "one").stdout == found[1]


def test_what_is_no_image_is_refused(host, tmp_path):
    bad = tmp_path / "bad"
    for content in (b"", b"hsqs", b"hsqs" + bytes(8192), os.urandom(4096)):
        bad.write_bytes(content)
        refused = host.stackfs("mount", "pod", "--lower", bad, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith(b"stackfs: error: ")
        assert os.fsencode(bad) in refused.stderr
        assert b"Traceback" not in refused.stderr
    wait_until(lambda: not loops(bad))
    assert host.list() == []
