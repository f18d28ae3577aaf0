"""What the examples are built with: reduced root trees, the cache, the smarthost."""

import os

import pytest

from autopod.status import debian
from examples import roots
from examples.exim import build as exim
from examples.exim import mail

pytestmark = pytest.mark.needs("root", "namespaces")


@pytest.fixture
def full(tmp_path):
    full = tmp_path / "full"
    for directory in ("usr/lib", "usr/sbin", "etc/alternatives", "var/spool"):
        (full / directory).mkdir(parents=True)
    (full / "lib").symlink_to("usr/lib")
    (full / "usr/sbin/tool-1.0").write_text("tool")
    (full / "etc/alternatives/tool").symlink_to("/usr/sbin/../sbin/tool-1.0")
    (full / "usr/sbin/tool").symlink_to("/etc/alternatives/tool")
    (full / "loop").symlink_to("loop")
    (full / "up").symlink_to("../../../../usr/lib")
    return full


@pytest.fixture
def copier(full, tmp_path):
    (tmp_path / "target").mkdir()
    return roots._Copier(full, tmp_path / "target")


def listing(root):
    return {os.fspath(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_every_link_on_the_way_comes_along(copier, tmp_path):
    copier.take("/usr/sbin/tool")
    target = tmp_path / "target"
    assert listing(target) == {"usr/sbin/tool", "etc/alternatives/tool", "usr/sbin/tool-1.0"}
    assert (target / "usr/sbin/tool-1.0").read_text() == "tool"


def test_links_resolve_inside_of_the_tree(copier, tmp_path):
    copier.take("/up")
    copier.take("/lib/.")
    assert (tmp_path / "target/usr/lib").is_dir()


def test_owner_and_mode_are_kept(full, copier, tmp_path):
    os.chown(full / "var/spool", 7, 8)
    (full / "var/spool").chmod(0o2750)
    copier.take("/var/spool")
    status = (tmp_path / "target/var/spool").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (7, 8, 0o2750)


def test_what_is_missing_is_named(copier):
    with pytest.raises(roots.BuildError, match="no /usr/sbin/other in"):
        copier.take("/usr/sbin/other")


def test_a_loop_of_links_ends(copier):
    with pytest.raises(roots.BuildError, match="too many levels of symbolic links: /loop"):
        copier.take("/loop")


def test_the_cache_holds_complete_trees_only(monkeypatch, tmp_path):
    monkeypatch.setattr(roots, "CACHE", tmp_path / "cache")
    calls = []

    def build(target):
        calls.append(target)
        target.mkdir()
        if len(calls) == 1:
            raise roots.BuildError("half-made")
        (target / "file").write_text("")

    with pytest.raises(roots.BuildError):
        roots._cached("tree", ["one"], build)
    assert [path.name for path in roots.CACHE.iterdir() if path.is_dir()] == []
    first = roots._cached("tree", ["one"], build)
    assert roots._cached("tree", ["one"], build) == first
    assert roots._cached("tree", ["other"], build) != first
    assert len(calls) == 3


def test_the_smarthost_takes_a_message():
    assert not mail.answers("127.0.0.1")
    with mail.smarthost("127.0.0.1") as received:
        assert mail.answers("127.0.0.1")
        mail.send("127.0.0.1", "a@pod.test", "b@elsewhere.test", "subject\u00e9")
    [message] = received
    assert "To: b@elsewhere.test" in message


def test_a_reduced_tree_tells_which_packages_it_is_made_from():
    tree = exim.build()
    whole = debian.parse_status((roots.debian() / "var/lib/dpkg/status").read_text())
    told = debian.parse_status((tree / "var/lib/dpkg/status").read_text())
    names = {package for package, _ in told}
    assert {"exim4-daemon-light", "libc6", "libgnutls30"} <= names
    assert not {"apt", "dpkg", "bash", "python3"} & names
    assert told.items() <= whole.items()
    assert debian.codename((tree / "usr/lib/os-release").read_text()) == roots._release()
