"""Layers go to umoci, a tool of the Open Container Initiative, and come back from it."""

import gzip
import json
import os
import stat
import subprocess

import pytest

pytestmark = [pytest.mark.needs("root", "fuse"), pytest.mark.slow]


def contents(root):
    """What a tree holds, in terms that both tools keep."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in [".", *names, *files]:
            path = os.path.normpath(os.path.join(directory, name))
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            data = None
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    data = file.read()
            elif kind == stat.S_IFLNK:
                data = os.readlink(path)
            found[os.path.relpath(path, root)] = (
                (status.st_mode, status.st_uid, status.st_gid, status.st_rdev),
                status.st_nlink if kind != stat.S_IFDIR else 0,
                status.st_mtime_ns,
                {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in os.listxattr(path, follow_symlinks=False)
                    if not key.startswith("trusted.")
                },
                data,
            )
    return found


def fill_lower(lower):
    for path in ("etc/passwd", "etc/gone", "opaque/old", "d/x", "d/y"):
        (lower / path).parent.mkdir(exist_ok=True)
        (lower / path).write_text(path)
    os.link(lower / "d/x", lower / "linked")
    os.chmod(lower / "d", 0o2750)
    os.chown(lower / "d", 0, 77)


def change(root):
    (root / "new").write_bytes(os.urandom(100_000))
    os.unlink(root / "etc/gone")
    os.unlink(root / "opaque/old")
    os.rmdir(root / "opaque")
    (root / "opaque").mkdir()
    (root / "opaque/fresh").write_text("fresh")
    with open(root / "linked", "a") as file:
        file.write("+")
    os.symlink("/etc/passwd", root / "link")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.chmod(root / "d/y", 0o6755)
    os.setxattr(root / "d/y", "user.note", b"value")
    os.utime(root / "new", ns=(1, 10**18 + 123456789))


def umoci(*arguments):
    subprocess.run(["umoci", *map(os.fspath, arguments)], check=True, capture_output=True)


def top_layer(image, tag):
    """The tar of an image's topmost layer."""

    def blob(descriptor):
        return (image / "blobs/sha256" / descriptor["digest"].split(":")[1]).read_bytes()

    index = json.loads((image / "index.json").read_text())
    name = "org.opencontainers.image.ref.name"
    (wanted,) = [one for one in index["manifests"] if one["annotations"][name] == tag]
    return gzip.decompress(blob(json.loads(blob(wanted))["layers"][-1]))


def test_there_and_back_again(host, tmp_path):
    fill_lower(host.lower)
    root = host.mount()
    change(root)
    image, bundle = tmp_path / "image", tmp_path / "bundle"
    umoci("init", "--layout", image)
    umoci("new", "--image", f"{image}:ours")
    layer = host.request("snapshot")["layer"]["path"]
    for directory in (host.lower, layer):
        (tmp_path / "layer.tar").write_bytes(host.stackfs("pack", directory).stdout)
        umoci("raw", "add-layer", "--image", f"{image}:ours", tmp_path / "layer.tar")
    umoci("unpack", "--image", f"{image}:ours", bundle)
    rootfs = bundle / "rootfs"
    host.stackfs("umount", "pod")
    host.stackfs("mount", "pod")
    assert contents(rootfs) == contents(root)

    (rootfs / "d/y").unlink()
    (rootfs / "d/from-umoci").write_text("in a directory that did not change itself")
    (rootfs / "etc/passwd").write_text("changed")
    os.setxattr(rootfs / "etc/passwd", "user.note", b"theirs")
    for path in ("d/from-umoci", "etc/passwd"):
        os.utime(rootfs / path, ns=(0, 10**18))
    umoci("repack", "--image", f"{image}:theirs", bundle)
    tar = top_layer(image, "theirs")
    host.stackfs("umount", "pod")
    below = ["--below", layer, "--below", host.lower]
    host.stackfs("unpack", host.state() / "layers/2", *below, stdin=tar)
    host.stackfs("mount", "pod")
    # umoci rounds times to seconds, and leaves out a directory in which only names changed.
    assert in_seconds(contents(root)) == in_seconds(contents(rootfs))


def in_seconds(found):
    return {
        path: (owner, links, None if stat.S_ISDIR(owner[0]) else time // 10**9, *rest)
        for path, (owner, links, time, *rest) in found.items()
    }
