"""What is written is read again, and is what other tools expect."""

import hashlib
import io
import json
import os
import tarfile
import threading
from contextlib import ExitStack

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.archive import frames, schema
from ckpt.archive.read import open_archive
from ckpt.archive.write import ArchiveWriter
from ckpt.model import PAGE_SIZE
from ckpt.progress import Silent
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import KEY, MODEL, TRUSTED, page


def test_everything_comes_back(tmp_path):
    path = tmp_path / "mail.pod"
    summary = archives.make(path)
    assert (summary.pages, summary.unique_pages, summary.layers) == (3, 2, 1)
    assert summary.bytes == path.stat().st_size
    assert path.stat().st_mode & 0o7777 == 0o600
    with open_archive(path, TRUSTED) as archive:
        assert archive.model() == MODEL
        assert archive.config() == archives.CONFIG
        assert archive.manifest.base == archives.BASE
        assert archive.manifest.kinds == ["memory", "names", "pipe", "regular", "uts"]
        assert archive.manifest.pod == "mail"
        assert archive.manifest.host.kernel == os.uname().release
        assert archive.signer == archives.KEYID
        assert archive.pages.read(0, 3) == archives.PAGES
        assert archive.pages.read(1, 1) == page(2)
        assert archive.pages.read(3, 0) == b""
        (layer,) = archive.layers
        assert (layer.id, layer.length) == (archives.LAYER_ID, len(archives.LAYER))
        assert b"".join(archive.layer_tar(layer)) == archives.LAYER
        archive.verify(Silent())


def test_nothing_but_a_model(tmp_path):
    archives.make(tmp_path / "empty.pod", pages=b"", layers=[])
    with open_archive(tmp_path / "empty.pod", TRUSTED) as archive:
        assert (archive.pages.count, archive.layers) == (0, [])
        archive.verify(Silent())


def test_equal_layers_are_stored_once_and_keep_their_ids(tmp_path):
    layers = [("a" * 32, b"same"), ("b" * 32, b"same"), ("c" * 32, b"")]
    archives.make(tmp_path / "x.pod", layers=layers)
    with open_archive(tmp_path / "x.pod", TRUSTED) as archive:
        found = [(a.id, b"".join(archive.layer_tar(a))) for a in archive.layers]
        assert found == layers
        archive.verify(Silent())


def test_as_many_layers_as_there_can_be(tmp_path):
    path, count = tmp_path / "x.pod", schema.MAX_LAYERS
    with ArchiveWriter(path, KEY, progress=Silent()) as writer:
        for number in range(count):
            writer.add_layer(f"{number:032x}", io.BytesIO(b"%d" % number))
        with pytest.raises(ValueError, match="more than 512 layers"):
            writer.add_layer("f" * 32, io.BytesIO(b""))
        writer.set_model(MODEL)
        writer.commit()
    with open_archive(path, TRUSTED) as archive:
        assert b"".join(archive.layer_tar(archive.layers[-1])) == b"%d" % (count - 1)
        archive.verify(Silent())


def test_same_input_same_bytes(tmp_path, monkeypatch):
    for name in ("one", "two"):
        archives.make_canonical(tmp_path / name, monkeypatch)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@settings(deadline=None, max_examples=60)
@given(
    adds=st.lists(st.lists(st.integers(0, 40), max_size=60), max_size=30),
    reads=st.lists(st.tuples(st.integers(0, 1800), st.integers(0, 1800)), max_size=8),
    frame_pages=st.sampled_from([1, 2, 7, 64]),
    before=st.none() | st.lists(st.integers(0, 60), max_size=80),
    settles=st.sets(st.integers(0, 30)),
    ahead=st.booleans(),
)
def test_pages_are_a_list_of_pages(  # noqa: PLR0917 (hypothesis names them)
    tmp_path_factory, adds, reads, frame_pages, before, settles, ahead
):
    """Whatever is added in whatever pieces, with frames of whatever size, reads as one list.

    Whenever the workers are waited for, and whether they begin before the first one is read. So it
    does where an earlier archive has some of it, in whatever order.
    """
    path = tmp_path_factory.mktemp("pages") / "x.pod"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("frames", "write", "pagewrite", "frameread"):
            target = f"ckpt.archive.{module}"
            if module == "frameread":
                patch.setattr(f"{target}._FRAME_PAGES", frame_pages)
            else:
                patch.setattr(f"{target}.FRAME_CONTENT", frame_pages * PAGE_SIZE)
        expected = []
        with ExitStack() as stack:
            earlier = None
            if before is not None:
                archives.make(path.with_name("before.pod"), pages=b"".join(map(page, before)))
                earlier = stack.enter_context(open_archive(path.with_name("before.pod"), TRUSTED))
            writer = stack.enter_context(
                ArchiveWriter(path, KEY, progress=Silent(), earlier=earlier)
            )
            for turn, numbers in enumerate(adds):
                if turn in settles:
                    writer.pages.settle()
                first = writer.pages.add(b"".join(map(page, numbers)))
                assert first == len(expected)
                expected += numbers
            writer.set_model(MODEL)
            summary = writer.commit()
        assert summary.unique_pages == len(set(expected) - set(before or ()))
        with open_archive(path, TRUSTED) as archive:
            if ahead:
                archive.pages.begin()
            assert archive.pages.read(0, archive.pages.count) == b"".join(map(page, expected))
            for first, count in reads:
                if first + count <= len(expected):
                    part = b"".join(map(page, expected[first : first + count]))
                    assert archive.pages.read(first, count) == part
                else:
                    with pytest.raises(IndexError):
                        archive.pages.read(first, count)
            archive.verify(Silent())


def test_who_waits_for_the_workers_gets_the_same_archive(tmp_path):
    """Of 5000 pages all but what fills no frame is written then."""
    written = []
    for waits in (False, True):
        path = tmp_path / f"{waits}.pod"
        with ArchiveWriter(path, KEY, progress=Silent()) as writer:
            writer.set_origin(archives.HOST, archives.CREATED)
            for first in range(0, 5000, 500):
                writer.pages.add(b"".join(map(page, range(first, first + 500))))
                if waits:
                    writer.pages.settle()
            written.append(writer.so_far()[1])
            writer.set_model(MODEL)
            writer.commit()
    assert written[0] < written[1]
    assert (tmp_path / "False.pod").read_bytes() == (tmp_path / "True.pod").read_bytes()


@pytest.mark.slow
def test_many_frames(tmp_path):
    """Read ahead, in order and out of order, and in a child that has none of the threads."""
    path, count = tmp_path / "x.pod", 14 * 1024 + 5
    with ArchiveWriter(path, KEY, progress=Silent()) as writer:
        for first in range(0, count, 1000):
            numbers = range(first, min(first + 1000, count))
            writer.pages.add(memoryview(b"".join(map(page, numbers))))
        writer.add_layer("1" * 32, io.BytesIO(bytes(3 * frames.FRAME_CONTENT + 1)))
        writer.set_model(MODEL)
        writer.commit()
    with open_archive(path, TRUSTED) as archive:
        for first in [*range(0, count - 100, 100), 5, count - 100]:
            assert archive.pages.read(first, 100) == b"".join(map(page, range(first, first + 100)))
            if first == 6000:
                assert _in_child(
                    lambda: (
                        archive.pages.read(6100, 5000)[-8:] == page(11099)[-8:]
                        and threading.active_count() == 1
                    )
                )
        tar = b"".join(archive.layer_tar(archive.layers[0]))
        assert tar == bytes(3 * frames.FRAME_CONTENT + 1)


def _in_child(question):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if question() else 1)
    return os.waitpid(pid, 0)[1] == 0


def test_wrong_calls(tmp_path):
    with ArchiveWriter(tmp_path / "x.pod", KEY, progress=Silent()) as writer:
        with pytest.raises(ValueError, match="not whole pages"):
            writer.pages.add(b"x")
        with pytest.raises(RuntimeError, match="without a model"):
            writer.commit()
        writer.add_layer("1" * 32, io.BytesIO())
        with pytest.raises(RuntimeError, match="after the first layer"):
            writer.pages.add(page(1))
        with pytest.raises(ValueError, match="configuration of"):
            writer.set_config(bytes(schema.MAX_SMALL + 1))
    assert os.listdir(tmp_path) == []


def test_other_tools_read_it(tmp_path):
    """An OCI image layout in a tar, whose layers are tars compressed with zstd."""
    archives.make(tmp_path / "x.pod", layers=[("1" * 32, _tar()), ("2" * 32, _tar())])
    with tarfile.open(tmp_path / "x.pod") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}
    assert json.loads(content["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(content["index.json"])
    assert (index["schemaVersion"], index["mediaType"]) == (2, schema.IMAGE_INDEX_TYPE)
    image = json.loads(_blob(content, index["manifests"][0]))
    assert image["artifactType"] == index["manifests"][0]["artifactType"] == schema.ARTIFACT_TYPE
    json.loads(_blob(content, image["config"]))
    for descriptor in image["layers"]:
        data = _blob(content, descriptor)
        if descriptor["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd":
            with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as stream:
                assert stream.read() == _tar()
    envelope = json.loads(_blob(content, index["manifests"][1]))
    assert envelope["payloadType"] == "application/vnd.oci.image.manifest.v1+json"


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("etc/motd"))
    return file.getvalue()


def _blob(content, descriptor):
    """What a reader of OCI does: find by digest, check digest and size."""
    algorithm, digest = descriptor["digest"].split(":")
    data = content[f"blobs/{algorithm}/{digest}"]
    assert hashlib.sha256(data).hexdigest() == digest
    assert len(data) == descriptor["size"]
    return data
