"""What changed between two archives."""

import io
import os
import tarfile

import msgspec
import pytest

from ckpt import cli, diff, difftext
from ckpt.archive.errors import FormatError
from ckpt.archive.read import open_archive
from ckpt.diff import Area, Change, FileChange
from ckpt.kinds import memory
from ckpt.layerview import View
from ckpt.model import PAGE_SIZE, Descriptor, OpenFile, Part, Process, Thread
from tests.unit.ckpt import archives
from tests.unit.ckpt.archives import page, part


def layer(*members):
    """An OCI layer tar: names with sizes; a trailing slash makes a directory."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, size, *redirect in members:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = size
            if redirect:
                info.pax_headers = {"SCHILY.xattr.trusted.overlay.redirect": redirect[0]}
            tar.addfile(info, io.BytesIO(bytes(size)))
    return output.getvalue()


def space(*mappings):
    layout = memory.Layout(0, 0, 0, 0, 0x5000, 0x9000, 0x7000_0000, 0, 0, 0, 0)
    state = memory.State(layout, b"", 0, list(mappings), [], b"")
    return Part("memory", msgspec.Raw(msgspec.msgpack.encode(state)))


def mapping(start, runs, file=None):
    runs = [memory.Run(start, count, first) for first, count in runs]
    return memory.Mapping(start, start + 0x4000, ["read"], False, file, 0, [], [], b"", runs)


def process(pid, name, *parts, descriptors=()):
    return Process(pid, 1, pid, pid, None, list(descriptors), [Thread(pid, [name])], list(parts))


def write(path, processes, files, pages, layers):
    model = msgspec.structs.replace(archives.MODEL, processes=processes, files=files)
    numbered = [(f"{number:032x}", content) for number, content in layers]
    archives.make(path, model=model, pages=pages, layers=numbered)


EXIM, SHELL = part("names", comm=b"exim4"), part("names", comm=b"sh\x1b[31m")
PEER = {"host": "192.0.2.9", "port": 4000}


def tcp(phase):
    own = {"host": "192.0.2.1", "port": 25}
    return part("tcp", state="connected", address=own, peer=PEER, connection={"phase": phase})


@pytest.fixture
def two(tmp_path):
    """Two archives of one pod, which differ in a bit of everything."""
    library = OpenFile(0, ["rdonly"], part("regular", path=b"/lib/libc", position=0))
    first, second = tmp_path / "a.pod", tmp_path / "b.pod"
    write(
        first,
        [
            process(
                2,
                EXIM,
                space(mapping(0x1000, [(2, 1)], file=0), mapping(0x5000, [(0, 2)])),
                descriptors=[Descriptor(0, 0, False), Descriptor(5, 1, False)],
            ),
            process(9, SHELL),
        ],
        [library, OpenFile(1, [], tcp("established"))],
        page(1) + page(2) + page(3),
        [
            (1, layer(("etc/", 0), ("etc/a", 10), ("etc/old", 5), ("srv/", 0), ("srv/x", 1))),
            (2, layer(("etc/tmp", 7))),
        ],
    )
    write(
        second,
        [
            process(
                2,
                EXIM,
                # Other numbers of files and pages for what is the same, and two pages changed.
                space(mapping(0x1000, [(0, 1)], file=1), mapping(0x5000, [(1, 3)])),
                descriptors=[Descriptor(0, 1, False), Descriptor(6, 0, False)],
            ),
            process(12, EXIM),
        ],
        [
            OpenFile(0, [], tcp("close_wait")),
            msgspec.structs.replace(library, id=1),
        ],
        page(3) + page(1) + page(7) + page(8),
        [
            (1, layer(("etc/", 0), ("etc/a", 10), ("etc/old", 5), ("srv/", 0), ("srv/x", 1))),
            (3, layer(("etc/", 0), ("etc/a", 2000), ("etc/.wh.old", 0), ("etc/.wh.base", 0))),
            (4, layer(("new", 3), ("moved/", 0, "/srv"), ("srv/.wh..wh..opq", 0))),
        ],
    )
    with open_archive(first, archives.TRUSTED) as a, open_archive(second, archives.TRUSTED) as b:
        yield a, b


def test_what_changed(two):
    found = diff.compare(*two)
    assert found.processes == [
        Change("gone", 9, "", "sh\x1b[31m", None),
        Change("came", 12, "", None, "exim4"),
    ]
    assert found.memory == [Area(2, "heap", 2 * PAGE_SIZE, 3 * PAGE_SIZE, 2 * PAGE_SIZE)]
    ends = "192.0.2.1:25 192.0.2.9:4000"
    assert found.descriptors == [
        Change("gone", 2, "5", f"tcp connected {ends}", None),
        Change("came", 2, "6", None, f"tcp connected {ends}"),
    ]
    assert found.connections == [
        Change("changed", None, f"tcp {ends}", "established", "close_wait")
    ]
    assert found.files == [
        FileChange("changed", "/etc/a", "file", 10, 2000),
        FileChange("gone", "/etc/base", "deleted", None, None),
        FileChange("gone", "/etc/old", "file", 5, None),
        FileChange("gone", "/etc/tmp", "file", 7, None),
        FileChange("came", "/moved", "directory", None, None, "/srv"),
        FileChange("came", "/new", "file", None, 3),
        FileChange("gone", "/srv/x", "file", 1, None),
    ]
    assert found.same_base
    assert found.left_out == 0


def test_in_words(two):
    lines = difftext.as_text(diff.compare(*two), *two).splitlines()
    assert r"  -       9  sh\x1b[31m" in lines
    assert "          2    8.0 KiB   12.0 KiB    8.0 KiB  heap" in lines
    assert "  ~ tcp 192.0.2.1:25 192.0.2.9:4000: established -> close_wait" in lines
    assert "  ~      10 B -> 2.0 KiB  /etc/a" in lines
    same = difftext.as_text(diff.compare(two[0], two[0]), two[0], two[0])
    assert same.splitlines()[2:] == [
        *("", "processes: as they were", "", "memory: as it was", "", "descriptors: as they were"),
        *("", "connections: as they were", "", "files: as they were"),
    ]


def test_the_command(two, tmp_path, monkeypatch, capsys):
    from ckpt.archive import keys

    monkeypatch.setenv("AUTOPOD_PREFIX", os.fspath(tmp_path))
    keys.accept(archives.KEY.public_key(), tmp_path / "etc/autopod/trust")
    argv = ["diff", os.fspath(tmp_path / "a.pod"), os.fspath(tmp_path / "b.pod"), "--json"]
    assert cli.main(argv) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=diff.Diff) == diff.compare(*two)


@pytest.mark.parametrize("content", [b"x" * 600, layer(("a", 600))[:700], b"\xff" * 2000])
def test_what_is_no_layer(content):
    with pytest.raises(FormatError, match="layer 1: not a layer"):
        View().add_layer(iter([content]), "layer 1")
