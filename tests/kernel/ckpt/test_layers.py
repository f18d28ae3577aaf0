"""A pod's files, from a mounted stack into an archive and back, with the real stackfs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from ckpt import abi, layers, restore, sealing, stack, stackcommand
from ckpt.archive.errors import FormatError
from ckpt.archive.read import open_archive
from ckpt.archive.schema import Base
from ckpt.archive.write import ArchiveWriter
from ckpt.layers import InstallError
from ckpt.progress import Silent
from ckpt.stackcommand import Packing
from examples import leftovers
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import TRUSTED

pytestmark = pytest.mark.needs("root", "fuse", "mount_ns")
POD = "mail"


@pytest.fixture
def lower(tmp_path):
    """A lower layer."""
    path = tmp_path / "lower"
    (path / "etc").mkdir(parents=True)
    (path / "etc/motd").write_text("from below")
    (path / "etc/gone").write_text("to be deleted")
    return path


@pytest.fixture
def pod(places, lower):
    """A mounted pod that has written something."""
    stack.mount(places, POD, [lower])
    root = places.root(POD)
    (root / "etc/motd").write_text("changed")
    (root / "etc/gone").unlink()
    (root / "var").mkdir()
    (root / "var/mail").write_bytes(b"mail\n" * 10_000)
    yield root
    if stack.is_mounted(places, POD):
        stack.umount(places, POD)


def checkpoint(places, path):
    root_fd = os.open(places.root(POD), os.O_RDONLY)
    abi.syncfs(root_fd)
    os.close(root_fd)
    sealed = sealing.seal(places, POD)
    with ArchiveWriter(path, archives.KEY, progress=Silent()) as writer:
        sealing.write_layers(writer, sealed, Packing(places))
        writer.set_model(archives.MODEL)
        writer.commit()
    return sealed


def install(places, path, *arguments, **named):
    with open_archive(path, TRUSTED) as archive:
        return layers.install(layers.files_of(archive, places), places, POD, *arguments, **named)


def assert_restored(root):
    assert (root / "etc/motd").read_text() == "changed"
    assert not (root / "etc/gone").exists()
    assert (root / "var/mail").stat().st_size == 50_000


@pytest.fixture
def archive(places, pod, tmp_path):
    """A checkpoint of the pod; afterwards it is not mounted, its state is still here."""
    checkpoint(places, tmp_path / "mail.pod")
    stack.umount(places, POD)
    return tmp_path / "mail.pod"


def test_whether_it_can_be_restarted_is_told_without_beginning(
    places, pod, lower, tmp_path, monkeypatch
):
    empty = replace(archives.MODEL, processes=[], files=[], objects=[], parts=[])
    monkeypatch.setattr(archives, "MODEL", empty)
    checkpoint(places, tmp_path / "mail.pod")
    stack.umount(places, POD)
    before = sorted(places.state(POD).rglob("*"))
    assert restore.check(places, POD, tmp_path / "mail.pod", trusted=TRUSTED) == 0, "bytes"
    (lower / "etc/motd").write_text("tampered")
    with pytest.raises(InstallError, match="lower layer 1 of 1 is not here"):
        restore.check(places, POD, tmp_path / "mail.pod", trusted=TRUSTED)
    assert sorted(places.state(POD).rglob("*")) == before


def test_a_checkpoint_holds_layers_and_identities(places, pod, lower, tmp_path):
    path = tmp_path / "mail.pod"
    first = checkpoint(places, path)
    (pod / "var/more").write_text("second layer")
    second = checkpoint(places, path)
    assert [layer.id for layer in second.layers[1:]] == [layer.id for layer in first.layers]
    assert checkpoint(places, path).layers == second.layers, "an empty upper makes no layer"
    pod.chmod(0o711)
    second = checkpoint(places, path)
    assert len(second.layers) == 3, "the root's own mode is a change"
    with open_archive(path, TRUSTED) as archive:
        archive.verify(Silent())
        assert [a.id for a in archive.layers] == [b.id for b in reversed(second.layers)]
        (base,) = archive.manifest.base
        assert base.path == str(lower)
        assert base.identity == stack.identity(places, lower).result()
        assert len(base.identity) == 64
        names = b"".join(archive.layer_tar(archive.layers[0]))
        assert b"etc/.wh.gone" in names


def test_on_another_host(places, archive, lower, tmp_path):
    """Only the archive and a copy of the lower layer, elsewhere."""
    shutil.rmtree(places.state(POD))
    elsewhere = tmp_path / "elsewhere"
    lower.rename(elsewhere)
    installed = install(places, archive, [elsewhere])
    assert installed.lowers == [str(elsewhere)]
    assert_restored(places.root(POD))
    status = stack.status(places, POD)
    assert status.upper_empty
    with open_archive(archive, TRUSTED) as opened:
        assert [a.id for a in status.layers] == [b.id for b in reversed(opened.layers)]
    (places.root(POD) / "new").write_text("writable")
    installed.undo()
    assert not stack.is_mounted(places, POD)
    assert not layers._names(places.state(POD))


def test_merged_layers(places, pod, lower, tmp_path):
    """A merged layer travels as any other; what was checkpointed before it is other state."""
    old, new = tmp_path / "old.pod", tmp_path / "new.pod"
    former = checkpoint(places, old)
    (pod / "var/more").write_text("second layer")
    checkpoint(places, old.with_name("second.pod"))
    number = (pod / "var/mail").stat().st_ino
    subprocess.run(
        [Path(sys.executable).with_name("stackfs"), "flatten", POD],
        env={**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)},
        check=True,
    )
    (merged,) = checkpoint(places, new).layers
    assert merged.id not in [layer.id for layer in former.layers]
    stack.umount(places, POD)
    install(places, new).undo()
    with pytest.raises(InstallError, match="1 sealed layers"):
        install(places, old)
    install(places, old, replace=True).undo()
    shutil.rmtree(places.state(POD))
    installed = install(places, new)
    assert_restored(pod)
    assert (pod / "var/more").read_text() == "second layer"
    assert (pod / "var/mail").stat().st_ino == number
    assert [layer.id for layer in stack.status(places, POD).layers] == [merged.id]
    installed.undo()


def test_an_image_takes_the_place_of_the_directory(places, archive, lower, tmp_path):
    shutil.rmtree(places.state(POD))
    image = tmp_path / "image"
    subprocess.run(["mksquashfs", lower, image, "-quiet", "-no-progress"], check=True)
    shutil.rmtree(lower)
    assert install(places, archive, [image]).lowers == [str(image)]
    assert_restored(places.root(POD))


def test_deep_directories(places, archive, lower, pod):
    """Deeper than Python's recursion goes."""
    stack.mount(places, POD, [lower])
    deep = pod / "deep"
    for _ in range(1200):
        deep.mkdir()
        deep /= "d"
    checkpoint(places, archive)
    stack.umount(places, POD)
    layers._remove(places.state(POD))
    installed = install(places, archive)
    assert deep.parent.is_dir()
    installed.undo()
    assert os.listdir(places.states()) == [POD]
    assert os.listdir(places.state(POD)) == []


def test_state_that_is_here_already_is_used(places, archive):
    before = os.stat(places.state(POD) / "layers/1").st_ino
    installed = install(places, archive, mounting=stack.begin_mount(places, POD))
    assert os.stat(places.state(POD) / "layers/1").st_ino == before
    assert_restored(places.root(POD))
    installed.undo()
    assert os.stat(places.state(POD) / "layers/1").st_ino == before


def test_a_mount_that_is_here_already_is_used(places, archive, lower):
    stack.mount(places, POD, [lower])
    daemon = stack.status(places, POD).pid
    installed = install(places, archive, mounting=stack.begin_mount(places, POD))
    assert stack.status(places, POD).pid == daemon
    installed.undo()
    assert stack.status(places, POD).pid == daemon, "undo leaves what it did not make"
    stack.umount(places, POD)


def test_a_mount_of_other_lower_layers_is_not_taken_for_the_wanted_one(places, archive, lower):
    """Its path is right, and the mount is of what was there before."""
    (lower / "etc/motd").write_text("tampered")
    stack.mount(places, POD, [lower])
    with stack.identify(places, POD) as identified:
        identified.result()
    with pytest.raises(InstallError, match="lower layer 1 of 1 is not here"):
        install(places, archive)
    stack.umount(places, POD)


@pytest.mark.parametrize(
    ("identity", "given", "expected"),
    [
        ("a", None, True),
        ("a", ["/x"], True),
        ("a", ["/y"], False),
        ("a", [], False),
        ("b", None, False),
        (None, None, False),
    ],
)
def test_stands(identity, given, expected):
    mounted = [stack.Lower("/x", identity)]
    assert layers.stands(mounted, [Base("/elsewhere", "a")], given) is expected


def test_other_state_is_kept_unless_it_may_be_replaced(places, archive, lower):
    stack.mount(places, POD, [lower])
    (places.root(POD) / "etc/motd").write_text("precious")
    with pytest.raises(InstallError, match="1 sealed layers and files written") as caught:
        install(places, archive)
    assert "--replace" in caught.value.hint
    assert (places.root(POD) / "etc/motd").read_text() == "precious"
    installed = install(places, archive, replace=True)
    assert_restored(places.root(POD))
    assert (installed.replaced / "upper/etc/motd").read_text() == "precious"
    assert installed.replaced.name.startswith("mail.replaced-")
    installed.undo()
    stack.mount(places, POD, [lower])
    assert (places.root(POD) / "etc/motd").read_text() == "precious"
    stack.umount(places, POD)


@pytest.mark.parametrize("replace", [False, True])
def test_a_lower_layer_that_has_changed(places, archive, lower, replace):
    """The path is right, what is in it is not: nothing is changed, nothing mounted."""
    shutil.rmtree(places.state(POD))
    (lower / "etc/motd").write_text("tampered")
    with pytest.raises(InstallError, match="lower layer 1 of 1 is not here") as caught:
        install(
            places,
            archive,
            replace=replace,
            mounting=stack.begin_mount(places, POD),
        )
    assert "--lower DIR" in caught.value.hint
    assert not stack.is_mounted(places, POD)
    assert not places.state(POD).exists()
    assert os.listdir(places.states()) == []


def test_no_lower_layer_at_all(places, archive, tmp_path):
    with pytest.raises(InstallError, match="none was found"):
        install(places, archive, [])
    with pytest.raises(stackcommand.StackError, match="nowhere"):
        install(places, archive, [tmp_path / "nowhere"])


def test_lower_layers_of_the_configuration(places, archive, lower, tmp_path):
    (tmp_path / "decoy").mkdir()
    copy = lower.rename(tmp_path / "copy")
    places.configs().mkdir(parents=True)
    places.config(POD).write_text(f"[root]\nlower = ['{tmp_path / 'decoy'}', '{copy}']\n")
    assert install(places, archive).lowers == [str(copy)]
    stack.umount(places, POD)


def test_a_layer_that_was_tampered_with(places, archive):
    """Found when it is extracted; nothing of it stays."""
    shutil.rmtree(places.state(POD))
    data = bytearray(archive.read_bytes())
    with open_archive(archive, TRUSTED) as opened:
        name = opened.layers[0].digest.removeprefix("sha256:").encode()
    data[data.index(name) + 512 + 200] ^= 1
    archive.write_bytes(data)
    with pytest.raises(FormatError, match=r"layer [0-9a-f]{32}, frame 0"):
        install(places, archive, mounting=stack.begin_mount(places, POD))
    assert not stack.is_mounted(places, POD)
    assert os.listdir(places.states()) == []


def test_a_hostile_layer(places, archive, tmp_path, lower):
    """Signed, and not a tar: stackfs refuses it, in its own words."""
    shutil.rmtree(places.state(POD))
    with open_archive(archive, TRUSTED) as opened:
        base = opened.manifest.base
    path = tmp_path / "hostile.pod"
    with ArchiveWriter(path, archives.KEY, progress=Silent()) as writer:
        import io

        writer.add_layer("1" * 32, io.BytesIO(b"hostile" * 1000))
        writer.set_base(base)
        writer.set_model(archives.MODEL)
        writer.commit()
    with pytest.raises(stackcommand.StackError):
        install(places, path)
    assert os.listdir(places.states()) == []


def test_leftovers_of_a_restart_that_was_killed(places, archive):
    shutil.rmtree(places.state(POD))
    stale = places.states() / ".mail.new/layers/1"
    stale.mkdir(parents=True)
    (stale / "half").touch()
    install(places, archive)
    assert_restored(places.root(POD))
    assert not (places.root(POD) / "half").exists()
    stack.umount(places, POD)
    assert os.listdir(places.states()) == [POD]


KILLED = """
import os, signal, sys
from pathlib import Path
from ckpt import layers, stack, stackcommand
from ckpt.archive.read import open_archive
from launcher.places import Places
from tests.unit.ckpt.archives import TRUSTED

owner, name, moment = sys.argv[2:5]
target = {"layers": layers, "mounting": stackcommand.Mounting}[owner]
real = getattr(target, name)

def killed(*arguments, **named):
    if moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(target, name, killed)
places = Places.from_environment()
with open_archive(Path(sys.argv[1]), TRUSTED) as archive:
    mounting = stack.begin_mount(places, "mail")
    files = layers.files_of(archive, places)
    layers.install(files, places, "mail", replace=True, mounting=mounting)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "replacing"),
    [
        ("layers._extract before", False),
        ("layers.make_durable before", False),
        ("layers._take_place before", True),
        ("layers._forget before", True),
        ("layers._forget after", True),
        ("layers._take_place after", False),
        ("mounting.finish before", False),
        ("mounting.finish after", True),
    ],
)
def test_killed_anywhere(places, archive, lower, place, replacing):
    """The next restart goes well, whatever the one before was doing; nothing precious is lost."""
    if replacing:
        stack.mount(places, POD, [lower])
        (places.root(POD) / "precious").touch()
        stack.umount(places, POD)
    else:
        shutil.rmtree(places.state(POD))
    command = [sys.executable, "-c", KILLED, archive, *place.replace(".", " ").split()]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    install(places, archive, replace=True)
    assert_restored(places.root(POD))
    assert not (places.root(POD) / "precious").exists()
    stack.umount(places, POD)
    assert len(list(places.states().rglob("precious"))) == replacing
    assert not (places.states() / ".mail.new").exists()
    deadline = time.monotonic() + 60
    while leftovers.processes(places.prefix):  # a mount that was begun sees the end of its input
        assert time.monotonic() < deadline


def test_errors_are_those_of_stackfs(places, tmp_path):
    with pytest.raises(stack.NotMounted, match="'mail' is not mounted"):
        stack.status(places, POD)
    with pytest.raises(stack.NotMounted):
        sealing.seal(places, POD)
    with pytest.raises(stackcommand.StackError, match="no such directory"):
        stack.mount(places, POD, [tmp_path / "nowhere"])
    with pytest.raises(stackcommand.StackError):
        stack.identity(places, tmp_path / "nowhere").result()
    with pytest.raises(stackcommand.StackError):
        stack.umount(places, POD)
    with pytest.raises(stackcommand.StackError), stack.pack(places, tmp_path / "nowhere") as tar:
        assert tar.read() == b""


def test_a_long_prefix(tmp_path, monkeypatch, lower):
    """The socket's path does not fit an address (unix(7): 108 bytes)."""
    from launcher.places import Places

    places = Places(tmp_path / ("x" * 100))
    stack.mount(places, POD, [lower])
    assert stack.status(places, POD).lower[0].path == str(lower)
    stack.umount(places, POD)


def test_begun_and_abandoned(places):
    mounting = stack.begin_mount(places, POD)
    mounting.abandon()
    mounting.abandon()
    assert not stack.is_mounted(places, POD)
    assert not Path(places.prefix / "autopod").exists()
