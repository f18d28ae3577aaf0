"""What a power loss leaves: the disk's image is copied as it is, and mounted like after a boot."""

import contextlib
import os
import shutil
import stat

import pytest

CONTENTS = os.urandom(200_000)


@pytest.fixture
def lost(host, disk, tmp_path):
    """Return what lets the power go, and yields the root as it is after the next boot."""
    again = tmp_path / "again"

    @contextlib.contextmanager
    def power_lost():
        shutil.copy(disk[1], tmp_path / "after")
        host.stackfs("umount", "pod")
        again.mkdir()
        host.run("mount", "-o", "loop", tmp_path / "after", again)
        try:
            yield host.mount("pod", "--upper", again / "upper")
            host.stackfs("umount", "pod")
        finally:
            host.run("umount", again)

    return power_lost


@pytest.fixture
def disk(host, tmp_path):
    """A disk for the upper layer, as the host's namespace sees it, and its image."""
    image, at = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    host.run("mkfs.ext4", "-q", image)
    at.mkdir()
    host.run("mount", "-o", "loop", image, at)
    yield at, image
    host.run("umount", at)


def test_a_copy_is_never_visible_without_its_contents(host, disk, lost):
    at, _ = disk
    (host.lower / "f").write_bytes(CONTENTS)
    root = host.mount("pod", "--upper", at / "upper")
    os.chmod(root / "f", 0o600)
    # The journal is committed for another file's sake, and the machine stops.
    host.run("dd", "if=/dev/zero", f"of={at}/other", "count=1", "conv=fsync", "status=none")
    with lost() as root:
        assert stat.S_IMODE((root / "f").stat().st_mode) == 0o600
        assert (root / "f").read_bytes() == CONTENTS


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_what_was_synced_is_there(host, disk, lost, sync):
    at, _ = disk
    (host.lower / "d").mkdir()
    (host.lower / "d/old").write_bytes(CONTENTS)
    root = host.mount("pod", "--upper", at / "upper")
    for name in ("d/old", "new/one"):
        (root / name).parent.mkdir(exist_ok=True)
        with (root / name).open("ab") as file:
            file.write(b"synced")
            file.flush()
            sync(file.fileno())
    with lost() as root:
        assert (root / "d/old").read_bytes() == CONTENTS + b"synced"
        assert (root / "new/one").read_bytes() == b"synced"
