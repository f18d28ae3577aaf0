"""OCI layers: packing, unpacking, and archives that must be refused."""

import io
import os
import stat
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackfs.layers import tar, whiteout
from stackfs.layers.identity import identity
from stackfs.layers.oci import pack
from stackfs.layers.tar import DIRECTORY, LINK, SYMLINK, Member, TarError, encode, padded
from stackfs.layers.unpack import unpack

pytestmark = pytest.mark.needs("root")

names = st.binary(min_size=1, max_size=120).filter(
    lambda name: (
        not set(name) & set(b"/\0") and name not in (b".", b"..") and not name.startswith(b".wh.")
    )
)
attributes = st.dictionaries(
    st.sampled_from(["user.a", "user.\udcff", "trusted.b", "trusted.overlay.opaque"]),
    st.binary(max_size=30),
    max_size=2,
)
times = st.integers(-(2**31) * 10**9, 2**33 * 10**9)
files = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=3000)),
    st.tuples(st.just("hole"), st.integers(0, 300_000)),
    st.tuples(st.just("link"), names),
    st.tuples(st.just("node"), st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])),
    st.tuples(st.just("whiteout"), st.none()),
    st.tuples(st.just("again"), st.none()),
)
trees = st.recursive(
    st.dictionaries(names, st.tuples(files, st.integers(0, 0o7777), times, attributes), max_size=3),
    lambda below: st.dictionaries(
        names,
        st.one_of(
            st.tuples(files, st.integers(0, 0o7777), times, attributes),
            st.tuples(
                st.tuples(st.just("directory"), below), st.integers(0, 0o7777), times, attributes
            ),
        ),
        max_size=4,
    ),
    max_leaves=8,
)


def build(top, tree, linkable):
    """Make a tree on disk."""
    for name, ((kind, what), mode, ns, xattrs) in tree.items():
        path = os.path.join(top, name)
        if kind == "directory":
            os.mkdir(path)
            build(path, what, linkable)
        elif kind == "again" and linkable:
            os.link(linkable[0], path)
            continue
        elif kind == "whiteout":
            os.mknod(path, stat.S_IFCHR, 0)
            continue
        elif kind == "link":
            os.symlink(what, path)
        elif kind == "node":
            os.mknod(path, what | 0o600, os.makedev(1, 3) if what == stat.S_IFCHR else 0)
        else:
            with open(path, "wb") as file:
                file.write(what if kind == "file" else b"")
                file.truncate(what if kind == "hole" else file.tell())
            linkable.append(path)
        decorate(path, kind, mode, ns, xattrs)


def decorate(path, kind, mode, ns, xattrs):
    os.chown(path, mode % 5, ns % 7, follow_symlinks=False)
    if kind != "link":
        os.chmod(path, mode)
    for name, value in xattrs.items():
        opaque = name == whiteout.OPAQUE
        if kind == "directory" or (kind in ("file", "hole") and not opaque):
            os.setxattr(path, name, b"y" if opaque else value)
    os.utime(path, ns=(ns, ns), follow_symlinks=False)


def describe(top):
    """Everything that a layer is."""
    found = {}
    groups = {}
    for directory, directories, others in os.walk(top):
        for name in [b".", *directories, *others]:
            path = os.path.join(directory, name)
            at = os.lstat(path)
            group = groups.setdefault(at.st_ino, path) if at.st_nlink > 1 else None
            shown = (at.st_mode, at.st_uid, at.st_gid, at.st_rdev, at.st_mtime_ns)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            size = 0 if stat.S_ISDIR(at.st_mode) else at.st_size
            shown = (*shown, size, os.path.relpath(group, top) if group else None, xattrs)
            contents = None
            if stat.S_ISREG(at.st_mode):
                with open(path, "rb") as file:
                    contents = file.read()
            elif stat.S_ISLNK(at.st_mode):
                contents = os.readlink(path)
            if whiteout.is_whiteout(at):
                shown, contents = "whiteout", None
            found[os.path.relpath(path, top)] = shown, contents
    return found


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees, mode=st.integers(0o700, 0o7777))
def test_unpacking_gives_what_was_packed(tree, mode):
    with tempfile.TemporaryDirectory() as place:
        top, copy = (os.fsencode(place) + part for part in (b"/top", b"/copy"))
        os.mkdir(top)
        build(top, tree, [])
        os.chmod(top, mode)
        archive = io.BytesIO()
        pack(os.fsdecode(top), archive)
        archive.seek(0)
        unpack(archive, os.fsdecode(copy))
        assert describe(copy) == describe(top)
        again = io.BytesIO()
        pack(os.fsdecode(copy), again)
        assert again.getvalue() == archive.getvalue()
        assert _identity(copy, place) == _identity(top, place)


def _identity(top, prefix):
    before = os.environ.get("AUTOPOD_PREFIX")
    os.environ["AUTOPOD_PREFIX"] = prefix
    try:
        return identity(os.fsdecode(top))
    finally:
        del os.environ["AUTOPOD_PREFIX"]
        if before is not None:
            os.environ["AUTOPOD_PREFIX"] = before


ROOT = encode(Member(b".", DIRECTORY, 0o755))
FILE = encode(Member(b"f", size=3)) + padded(b"abc")


def pax(body, size=None):
    header = Member(b"x", tar._PAX, size=len(body) if size is None else size)
    return tar._header(header, tar._PAX, header.size) + padded(body)


HOSTILE = {
    "empty": b"",
    "cut in a header": (ROOT + FILE)[:700],
    "cut in contents": ROOT + encode(Member(b"f", size=3000)) + bytes(512),
    "no end": ROOT,
    "one block of zeros": ROOT + bytes(512),
    "more after the end": ROOT + tar.end() + b"x",
    "absolute": ROOT + encode(Member(b"/f")),
    "dot dot": ROOT + encode(Member(b"../f")),
    "dot dot within": ROOT + encode(Member(b"d", DIRECTORY)) + encode(Member(b"d/../../f")),
    "link to above": ROOT + encode(Member(b"l", LINK, target=b"../../etc/passwd")),
    "link to an absolute path": ROOT + encode(Member(b"l", LINK, target=b"/etc/passwd")),
    "link to nothing": ROOT + encode(Member(b"l", LINK, target=b"f")),
    "link to a directory": ROOT
    + encode(Member(b"d", DIRECTORY))
    + encode(Member(b"l", LINK, target=b"d")),
    "link to a deleted name": ROOT
    + encode(Member(b".wh.f"))
    + encode(Member(b"f", LINK, target=b"f")),
    "below a symbolic link": ROOT
    + encode(Member(b"s", SYMLINK, target=b"/tmp"))
    + encode(Member(b"s/f")),
    "link through a symbolic link": ROOT
    + encode(Member(b"s", SYMLINK, target=b"/etc"))
    + encode(Member(b"l", LINK, target=b"s/passwd")),
    "below a file": ROOT + FILE + encode(Member(b"f/g")),
    "below a deletion": ROOT + encode(Member(b".wh.d", mode=0)) + encode(Member(b"d/f")),
    "a directory after what is in it, twice": ROOT
    + encode(Member(b"d/f"))
    + encode(Member(b"d", DIRECTORY)) * 2,
    "a directory that was taken for one": ROOT
    + encode(Member(b"d/f"))
    + encode(Member(b"d", SYMLINK, target=b"/")),
    "file twice": ROOT + FILE + FILE,
    "a file becomes a directory": ROOT + FILE + encode(Member(b"f", DIRECTORY)),
    "a directory becomes a link": ROOT
    + encode(Member(b"d", DIRECTORY))
    + encode(Member(b"d", SYMLINK, target=b"/")),
    "the same path in other words": ROOT + FILE + encode(Member(b"./f", size=0)),
    "the root is a link": encode(Member(b".", SYMLINK, target=b"/")),
    "a deletion with contents": ROOT + encode(Member(b".wh.f", size=1)) + padded(b"x"),
    "a deletion of nothing": ROOT + encode(Member(b".wh.")),
    "a deletion of dot dot": ROOT + encode(Member(b".wh...")),
    "a deletion of an entry": ROOT + FILE + encode(Member(b".wh.f")),
    "a deletion of a deletion": ROOT + encode(Member(b".wh..wh.f")),
    "a deletion that is a directory": ROOT + encode(Member(b".wh.f", DIRECTORY)),
    "a device that is a deletion": ROOT + encode(Member(b"f", tar.CHARACTER, device=(0, 0))),
    "a name too long": ROOT + encode(Member(b"f" * 256)),
    "a path too long": ROOT + encode(Member(b"/".join([b"d"] * 3000))),
    "deep, and then cut": ROOT
    + b"".join(encode(Member(b"/".join([b"d"] * depth), DIRECTORY)) for depth in range(1, 1200))
    + encode(Member(b"f", size=3000)),
    "a directory with contents": ROOT + encode(Member(b"d", DIRECTORY, size=512)) + bytes(512),
    "a huge extended header": ROOT + pax(b"", 1 << 32),
    "two extended headers": ROOT + pax(b"9 path=a\n") + pax(b"9 path=a\n") + FILE,
    "a record without length": ROOT + pax(b"path=a\n") + FILE,
    "a record that is too long": ROOT + pax(b"99 path=a\n") + FILE,
    "a record twice": ROOT + pax(b"9 path=a\n9 path=b\n") + FILE,
    "a record of no length": ROOT + pax(b"0 path=a\n") + FILE,
    "an extended size": ROOT + pax(b"12 size=-10\n") + FILE,
    "an extended size like unicode": ROOT + pax("9 size=²\n".encode()) + FILE,
    "an extended time": ROOT + pax(b"13 mtime=1e9\n") + FILE,
    "a zero byte in a path": ROOT + pax(b"11 path=a\0b\n") + FILE,
    "a checksum": ROOT + FILE.replace(b"abc", b"abc")[:148] + b"0000000\0" + FILE[156:],
    "another type": ROOT + tar._header(Member(b"f"), b"S", 0),
    "another format": ROOT + bytes(257) + b"ustar  \0" + bytes(247),
    "a malformed own attribute": ROOT + encode(Member(b"f", xattrs={whiteout.NUMBER: b"x"})),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_archives_leave_nothing(tmp_path, data):
    if not data.endswith((tar.end(), b"x")):
        complete = data + tar.end() if data not in _INCOMPLETE else data
    else:
        complete = data
    with pytest.raises(TarError):
        unpack(io.BytesIO(complete), os.fspath(tmp_path / "layer"))
    assert os.listdir(tmp_path) == []


_INCOMPLETE = [
    HOSTILE[name] for name in HOSTILE if name.startswith(("empty", "cut", "deep", "no ", "one"))
]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_archives_are_refused_or_harmless(data):
    """Whatever is flipped or cut, nothing but our own error comes, and nothing is left behind."""
    members = [
        ROOT,
        encode(Member(b"d", DIRECTORY, xattrs={"user.a": b"1"})),
        FILE,
        encode(Member(b"d/.wh..wh..opq")),
        encode(Member(b"l", SYMLINK, target=b"f")),
        encode(Member(b"n" * 150, mtime_ns=5)),
    ]
    archive = bytearray(b"".join(members) + tar.end())
    for _ in range(data.draw(st.integers(1, 3))):
        archive[data.draw(st.integers(0, len(archive) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(archive)))
    with tempfile.TemporaryDirectory() as place:
        try:
            unpack(io.BytesIO(bytes(archive[:cut])), f"{place}/layer")
        except (TarError, OSError):
            assert os.listdir(place) == []


def test_names_that_would_mean_deletions_are_not_packed(tmp_path):
    (tmp_path / ".wh.x").touch()
    with pytest.raises(TarError, match="would mean a deletion"):
        pack(os.fspath(tmp_path), io.BytesIO())


def test_nothing_is_unpacked_over_what_is_there(tmp_path):
    (tmp_path / "layer").mkdir()
    with pytest.raises(FileExistsError):
        unpack(io.BytesIO(ROOT + tar.end()), os.fspath(tmp_path / "layer"))
    assert os.listdir(tmp_path) == ["layer"]


def test_other_tools_read_it(tmp_path):
    """Python's tarfile sees the same names, types, sizes and times."""
    import tarfile

    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    (top / "d" / ("long" * 40)).write_bytes(b"x" * 1000)
    os.link(top / "d" / ("long" * 40), top / "again")
    os.mknod(top / "gone", stat.S_IFCHR, 0)
    os.symlink("d", top / "s")
    os.utime(top / "d", ns=(0, 1_500_000_000_123_456_789))
    archive = io.BytesIO()
    pack(os.fspath(top), archive)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as read:
        found = {member.name: member for member in read.getmembers()}
    assert set(found) == {".", ".wh.gone", "again", "d", "s", "d/" + "long" * 40}
    assert found["d/" + "long" * 40].islnk()
    assert found["again"].size == 1000
    assert found["s"].linkname == "d"
    assert abs(found["d"].mtime - 1_500_000_000.123456789) < 1e-6


def test_directories_that_an_archive_leaves_out(tmp_path):
    """Made as the topmost layer below has them, or as a directory of root's."""
    for name, mode in (("top", 0o2711), ("bottom", 0o700)):
        (tmp_path / name / "d").mkdir(parents=True)
        os.chmod(tmp_path / name / "d", mode)
        os.chown(tmp_path / name / "d", 5, 6)
        os.chmod(tmp_path / name / "d", mode)
        os.utime(tmp_path / name / "d", ns=(7, 8))
    os.setxattr(tmp_path / "top/d", "user.note", b"value")
    members = [Member(b"d/.wh.f", mode=0), Member(b"new/e/f"), Member(b"new", DIRECTORY, 0o1777)]
    archive = b"".join(map(encode, members)) + tar.end()
    fds = [os.open(tmp_path / name, os.O_PATH) for name in ("top", "bottom")]
    unpack(io.BytesIO(archive), os.fspath(tmp_path / "layer"), fds)
    for fd in fds:
        os.close(fd)
    made = os.stat(tmp_path / "layer/d")
    assert (made.st_mode, made.st_uid, made.st_gid, made.st_mtime_ns) == (0o42711, 5, 6, 8)
    assert os.getxattr(tmp_path / "layer/d", "user.note") == b"value"
    assert whiteout.is_whiteout(os.stat(tmp_path / "layer/d/f"))
    assert os.stat(tmp_path / "layer/new").st_mode == 0o41777
    assert os.stat(tmp_path / "layer/new/e").st_mode == 0o40755
    assert (tmp_path / "layer/new/e/f").is_file()
